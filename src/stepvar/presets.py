"""Named pruning plans, per pipeline."""

from __future__ import annotations

from stepvar.pruning.base import PruningMethod
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.stepvar import StepVAR

_LATE_SCALES: dict[str, PruningMethod] = {
    "paper": StepVAR(ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1)),
    "prune": StepVAR(ratios={-2: 0.5, -1: 0.75}),
    "skip": StepVAR(skip=(-2, -1)),
    "fastvar": FastVAR(ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1)),
}

_HART: dict[str, PruningMethod] = {
    "paper": StepVAR(ratios={-2: 0.5, -1: 0.75}),
    "prune": StepVAR(ratios={-2: 0.5, -1: 0.75}),
    "skip": StepVAR(skip=(-1,)),
    "fastvar": FastVAR(ratios={-2: 0.5, -1: 0.75}, first_layer=0, dense_end=0),
}

PRESETS: dict[str, dict[str, PruningMethod]] = {
    "HARTPipeline": _HART,
    "InfinityPipeline": _LATE_SCALES,
    "SwittiPipeline": _LATE_SCALES,
    "VARPipeline": _LATE_SCALES,
}
"""By class name of a pipeline, then by name.

"paper" has StepVAR's ratios for Infinity: 0.4 and 0.5 on the fourth and third last scale, the last
two skipped. "prune" skips nothing: 0.5 and 0.75 on the last two scales, the paper's ratios for HART.
"skip" only leaves out the last two scales, to tell what skipping alone brings. "fastvar" is FastVAR as
published for Infinity, with the same ratios as "paper"; its scales are counted from the end too, so that it
does the same at every aspect ratio and pixel budget.

The paper has no ratios for Switti and VAR: there the plans are Infinity's.

HART: "paper" and "prune" are one, since the paper skips nothing there: 0.5 and 0.75 on the last two scales
(48 and 64 tokens a side as published); "fastvar" prunes the same in all layers, and fills from the scale
before; "skip" leaves out the last scale, with its diffusion head.
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
