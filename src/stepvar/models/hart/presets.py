"""Presets of HART, by name."""

from __future__ import annotations

from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.presets import Preset, by_name, scalekv_preset, skipvar_preset, unguided_preset
from stepvar.pruning.stepvar import StepVAR

_TIMED = "times on random weights of the published size; picture quality was not measured"
_NOTHING = "nothing; the settings are Infinity's"

_RATIOS = {-2: 0.5, -1: 0.75}

PRESETS = by_name(
    Preset(
        "paper",
        StepVAR(ratios=_RATIOS),
        "StepVAR's plan for HART: 0.5 and 0.75 pruned of the last two scales (48 and 64 tokens a side)",
        _TIMED,
    ),
    Preset("prune", StepVAR(ratios=_RATIOS), "the same as 'paper', which leaves nothing out", _TIMED),
    Preset(
        "skip",
        StepVAR(skip=(-1,)),
        "the last scale left out, with its diffusion head",
        "nothing; operations are counted",
    ),
    Preset(
        "fastvar",
        FastVAR(ratios=_RATIOS, first_layer=0, dense_end=0),
        "FastVAR as published for HART: the ratios of 'paper' in all layers, filled from the scale before",
        _TIMED,
    ),
    unguided_preset(_NOTHING),
    skipvar_preset(_NOTHING),
    scalekv_preset(_NOTHING),
)
