"""Named pruning plans, per pipeline."""

from __future__ import annotations

from stepvar.pruning.base import PruningMethod
from stepvar.pruning.stepvar import StepVAR

_LATE_SCALES: dict[str, StepVAR] = {
    "paper": StepVAR(ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1)),
    "prune": StepVAR(ratios={-2: 0.5, -1: 0.75}),
    "skip": StepVAR(skip=(-2, -1)),
}

_LATE_STEPS: dict[str, StepVAR] = {
    "paper": StepVAR(ratios={-3: 0.5, -2: 0.5, -1: 0.5}),
    "prune": StepVAR(ratios=dict.fromkeys(range(-6, 0), 0.65)),
    "skip": StepVAR(skip=(-1,)),
    "720p-1.4x": StepVAR(ratios={-1: 0.5}),
    "720p-2x": StepVAR(ratios={-3: 0.7, -2: 0.7, -1: 0.7}),
    "10s-1.4x": StepVAR(ratios={step: 0.4 for first in (-3, -42) for step in range(first, first + 3)}),
}

PRESETS: dict[str, dict[str, StepVAR]] = {
    "InfinityPipeline": _LATE_SCALES,
    "InfinityStarPipeline": _LATE_STEPS,
    "SwittiPipeline": _LATE_SCALES,
    "VARPipeline": _LATE_SCALES,
}
"""By class name of a pipeline, then by name.

"paper" has StepVAR's ratios for Infinity: 0.4 and 0.5 on the fourth and third last scale, the last
two skipped. "prune" skips nothing: 0.5 and 0.75 on the last two scales, the paper's ratios for HART.
"skip" only leaves out the last two scales, to tell what skipping alone brings. The paper has no ratios
for Switti and VAR: there the plans are Infinity's.

InfinityStar's are for 480p: "paper" saves what the paper reports, 1.4 x, on the last three steps; "prune"
2 x on the last six, those from 18 rows up; "skip" leaves out the last step. At 720p the last step alone is
half of everything, so it has plans of its own. "10s-1.4x" prunes the last three steps of both clips of 10
seconds.
"""


def resolve_pruning(pruning: PruningMethod | str | None, pipeline: str) -> PruningMethod | None:
    """Turns what a user may pass as `pruning=` into a method, or None for a dense run.

    Args:
        pruning: A method's configuration, a preset's name, "none" or None.
        pipeline: Class name of the pipeline.

    Raises:
        ValueError: When the preset is unknown, or the value is of another kind.
    """
    if pruning is None or pruning == "none":
        return None
    if isinstance(pruning, str):
        presets = PRESETS.get(pipeline, {})
        if pruning not in presets:
            known = ", ".join(["none", *presets])
            raise ValueError(f"Unknown pruning preset {pruning!r}; known are {known}.")
        return presets[pruning]
    if isinstance(pruning, PruningMethod):
        return pruning
    raise ValueError(
        f"pruning is a {type(pruning).__name__}; pass StepVAR(...), another method, a preset's name or None."
    )
