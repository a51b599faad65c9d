"""Pruning methods by name, and named pruning plans per pipeline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from stepvar.pruning.base import LateScales, PruningMethod
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
    "unguided": StepVAR(unguided=-2),
    "skipvar": SkipVAR(),
    "scalekv": ScaleKV(share=0.06),
}

PRESETS: dict[str, dict[str, PruningMethod]] = {"InfinityPipeline": _LATE_SCALES}
"""By class name of a pipeline, then by name.

"paper" has StepVAR's ratios for Infinity: 0.4 and 0.5 on the fourth and third last scale, the last
two skipped. "prune" skips nothing: 0.5 and 0.75 on the last two scales, the paper's ratios for HART.
"skip" only leaves out the last two scales, to tell what skipping alone brings. "fastvar" is FastVAR as
published for Infinity, with the same ratios as "paper"; its scales are counted from the end too, so that it
does the same at every aspect ratio and pixel budget. "sparsevar-standin" is the stand-in, see `METHODS`.
"unguided" drops classifier-free guidance from the last two scales, "skipvar" decides that per picture, or
leaves scales out; "scalekv" lets all layers but the first remember 6 % of the tokens between scales, as many
as the published budgets for Infinity do on average.
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
