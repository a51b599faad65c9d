"""Presets of Infinity, by name."""

from __future__ import annotations

from stepvar.pruning.fastervar import FasterVAR
from stepvar.pruning.presets import (
    Preset,
    by_name,
    int8_preset,
    late_scale_presets,
    scalekv_preset,
    skipvar_preset,
    unguided_preset,
)
from stepvar.pruning.stepvar import StepVAR

_EMBEDDED = "the embedded model; not on the published weights"

PRESETS = by_name(
    *late_scale_presets(_EMBEDDED),
    unguided_preset(_EMBEDDED),
    Preset(
        "fastervar",
        FasterVAR.published(),
        "FasterVAR as published: the third last scale on random mixtures of its tokens, without the prompt, "
        "and the last two left out",
        _EMBEDDED,
    ),
    skipvar_preset(f"{_EMBEDDED}, to which its authors fitted the rule (Infinity-2B, 1 megapixel)"),
    scalekv_preset(_EMBEDDED),
    int8_preset(_EMBEDDED),
    # benchmarks/search_best.py found these two.
    Preset(
        "best",
        StepVAR(ratios={-1: 0.4}, skip=(-2,), unguided=-4, recovery="guided", values="expected"),
        "the fastest plan found that loses two points of scene score or less: the last scale but one "
        "left out, 0.4 of the last pruned, no guidance on the last four",
        _EMBEDDED,
    ),
    Preset(
        "faithful",
        StepVAR(ratios={-2: 0.2, -1: 0.3}, unguided=-2, recovery="guided"),
        "nearest to the dense picture in the time of 'prune': 0.2 and 0.3 pruned of the last two scales, no "
        "guidance there",
        _EMBEDDED,
    ),
)
