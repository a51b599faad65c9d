"""Presets of HART, by name."""

from __future__ import annotations

from stepvar.generation.guidance import UNCONDITIONAL
from stepvar.pruning.fastervar import FasterVAR
from stepvar.pruning.fastervar_shares import HART_SHARES
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.presets import (
    Preset,
    by_name,
    int8_preset,
    scalekv_preset,
    skipvar_preset,
    unguided_preset,
)
from stepvar.pruning.stepvar import StepVAR

_TIMED = "times on random weights of the published size; picture quality was not measured"
_NOTHING = "nothing; the settings are Infinity's"

_NOTHING_MEASURED = "nothing; not compared with the authors' code either"

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
    Preset(
        "fastervar",
        FasterVAR(
            # The ranks were measured against the width of the published model.
            shares={-1: tuple(share * 1536 / 4096 for share in HART_SHARES)},
            groups=24,
            places="representatives",
            unguided=-2,
            remaining=UNCONDITIONAL,
        ),
        "FasterVAR as published for HART: the last scale on random mixtures of its tokens, the last two "
        "without the prompt",
        _NOTHING_MEASURED,
    ),
    unguided_preset(_NOTHING),
    skipvar_preset(_NOTHING),
    scalekv_preset(_NOTHING),
    int8_preset(_NOTHING),
)
