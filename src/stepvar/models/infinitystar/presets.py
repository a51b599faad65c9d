"""Presets of InfinityStar, by name: ratios for 480p, and a few for other sizes.

At 720p the last step alone is half of everything, so it has plans of its own. "10s-1.4x" prunes the last
three steps of both clips of 10 seconds.
"""

from __future__ import annotations

from stepvar.generation.guidance import UNCONDITIONAL
from stepvar.pruning.fastervar import FasterVAR
from stepvar.pruning.presets import Preset, by_name
from stepvar.pruning.stepvar import StepVAR

_EMBEDDED = "the embedded video model, 96 prompts; not on the published weights"
_COUNTED = "nothing; operations are counted"


def _fastervar(unguided_steps: int) -> FasterVAR:
    return FasterVAR(
        shares={-1: (0.1,)}, groups=6, extra=0, unguided=-unguided_steps, remaining=UNCONDITIONAL
    )


PRESETS = by_name(
    Preset(
        "paper",
        StepVAR(ratios={-3: 0.5, -2: 0.5, -1: 0.5}),
        "0.5 pruned of the last three steps: the 1.4 x that the paper reports, at 480p",
        _EMBEDDED,
    ),
    Preset(
        "prune",
        StepVAR(ratios=dict.fromkeys(range(-6, 0), 0.65)),
        "0.65 pruned of the last six steps, those from 18 rows up: 2 x at 480p",
        _COUNTED,
    ),
    Preset("skip", StepVAR(skip=(-1,)), "the last step left out and nothing pruned", _EMBEDDED),
    Preset("720p-1.4x", StepVAR(ratios={-1: 0.5}), "0.5 pruned of the last step: 1.4 x at 720p", _COUNTED),
    Preset(
        "720p-2x",
        StepVAR(ratios={-3: 0.7, -2: 0.7, -1: 0.7}),
        "0.7 pruned of the last three steps: 2 x at 720p",
        _COUNTED,
    ),
    Preset(
        "fastervar",
        _fastervar(6),
        "FasterVAR as published for 480p: the last step on random mixtures, a tenth of its tokens, the last "
        "three scales (six steps) without the prompt",
        _COUNTED,
    ),
    Preset(
        "720p-fastervar",
        _fastervar(4),
        "FasterVAR as published for 720p, where the last three scales are four steps",
        _COUNTED,
    ),
    Preset(
        "10s-1.4x",
        StepVAR(ratios={step: 0.4 for first in (-3, -42) for step in range(first, first + 3)}),
        "0.4 pruned of the last three steps of both clips: 1.4 x for 10 seconds at 480p",
        _COUNTED,
    ),
)
