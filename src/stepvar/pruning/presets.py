"""Pruning methods by name, and named pruning plans per pipeline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from stepvar.generation.pruner import LateScales, PruningMethod
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.scalekv import ScaleKV
from stepvar.pruning.skipvar import SkipVAR
from stepvar.pruning.stepvar import StepVAR

METHODS: dict[str, LateScales] = {
    "stepvar": StepVAR(),
    "fastvar": FastVAR(),
    "sparsevar-standin": StepVAR(score="texture", anchor_stride=4),
}
"""Methods that prune tokens, by name, with no scales named yet; see `with_scales`.

"sparsevar-standin" is not SparseVAR, whose code was never published: it does what is known of it, keeps
the tokens of high spatial frequency and a sparse uniform grid of anchors, and copies the nearest.
"""


def with_scales(method: str, ratios: Mapping[int, float], skip: Collection[int] = ()) -> LateScales:
    """A method of `METHODS` on named scales, so that methods can be compared on one schedule.

    Raises:
        ValueError: When there is no such method, or a ratio is out of range.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown pruning method {method!r}; known are {', '.join(METHODS)}.")
    return replace(METHODS[method], ratios=ratios, skip=tuple(skip))


_PAPER: dict[str, Any] = {"ratios": {-4: 0.4, -3: 0.5}, "skip": (-2, -1)}

_LATE_SCALES: dict[str, PruningMethod] = {
    "paper": with_scales("stepvar", **_PAPER),
    "prune": StepVAR(ratios={-2: 0.5, -1: 0.75}),
    "skip": StepVAR(skip=(-2, -1)),
    "fastvar": with_scales("fastvar", **_PAPER),
    "sparsevar-standin": with_scales("sparsevar-standin", **_PAPER),
}

_LESS_WORK: dict[str, PruningMethod] = {"unguided": StepVAR(unguided=-2), "skipvar": SkipVAR()}

_LESS_MEMORY: dict[str, PruningMethod] = {"scalekv": ScaleKV(share=0.06)}

_SEARCHED: dict[str, PruningMethod] = {
    "best": StepVAR(ratios={-1: 0.4}, skip=(-2,), unguided=-4, recovery="guided", values="expected"),
    "faithful": StepVAR(ratios={-2: 0.2, -1: 0.3}, unguided=-2, recovery="guided"),
}

_HART: dict[str, PruningMethod] = {
    "paper": StepVAR(ratios={-2: 0.5, -1: 0.75}),
    "prune": StepVAR(ratios={-2: 0.5, -1: 0.75}),
    "skip": StepVAR(skip=(-1,)),
    "fastvar": FastVAR(ratios={-2: 0.5, -1: 0.75}, first_layer=0, dense_end=0),
    **_LESS_WORK,
    **_LESS_MEMORY,
}

_LATE_STEPS: dict[str, PruningMethod] = {
    "paper": StepVAR(ratios={-3: 0.5, -2: 0.5, -1: 0.5}),
    "prune": StepVAR(ratios=dict.fromkeys(range(-6, 0), 0.65)),
    "skip": StepVAR(skip=(-1,)),
    "720p-1.4x": StepVAR(ratios={-1: 0.5}),
    "720p-2x": StepVAR(ratios={-3: 0.7, -2: 0.7, -1: 0.7}),
    "10s-1.4x": StepVAR(ratios={step: 0.4 for first in (-3, -42) for step in range(first, first + 3)}),
}

PRESETS: dict[str, dict[str, PruningMethod]] = {
    "HARTPipeline": _HART,
    "InfinityPipeline": {**_LATE_SCALES, **_LESS_WORK, **_LESS_MEMORY, **_SEARCHED},
    "InfinityStarPipeline": _LATE_STEPS,
    "SwittiPipeline": {**_LATE_SCALES, **_LESS_WORK},
    "VARPipeline": {**_LATE_SCALES, **_LESS_WORK, **_LESS_MEMORY},
}
"""By class name of a pipeline, then by name.

"paper" has StepVAR's ratios for Infinity: 0.4 and 0.5 on the fourth and third last scale, the last
two skipped. "prune" skips nothing: 0.5 and 0.75 on the last two scales, the paper's ratios for HART.
"skip" only leaves out the last two scales, to tell what skipping alone brings. "fastvar" is FastVAR as
published for Infinity, with the same ratios as "paper"; its scales are counted from the end too, so that it
does the same at every aspect ratio and pixel budget. "sparsevar-standin" is the stand-in, see `METHODS`.
"unguided" drops classifier-free guidance from the last two scales, "skipvar" decides that per picture, or
leaves scales out; "scalekv" lets all layers but the first remember 6 % of the tokens between scales, as many
as the published budgets for Infinity do on average.

"best" and "faithful" were searched for on the embedded model (`benchmarks/search_best.py`). "best" is the
fastest plan found that loses two points of scene score or less: it leaves out the last scale but one, runs
most of the last, drops guidance from the last four, and fills in by likeness. "faithful" skips nothing, takes
about as long as "prune" and is nearest to the dense run. On the published Infinity nobody has measured them.

The paper has no ratios for Switti and VAR: there the plans are Infinity's. Nor were SkipVAR's rule and
ScaleKV's budgets fitted to any other model than Infinity: elsewhere they do what they say, and nobody has
measured how well. Switti has no "scalekv": its scales see themselves alone, so there is nothing to forget. It
draws its last scales without guidance at 1024 pixels; there "unguided" says that nothing is left to drop.

HART: "paper" and "prune" are one, since the paper skips nothing there: 0.5 and 0.75 on the last two scales
(48 and 64 tokens a side as published); "fastvar" prunes the same in all layers, and fills from the scale
before; "skip" leaves out the last scale, with its diffusion head.

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
