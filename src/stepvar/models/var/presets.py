"""Presets of VAR, by name: Infinity's plans, since the paper has none."""

from __future__ import annotations

from stepvar.pruning.presets import (
    by_name,
    int8_preset,
    late_scale_presets,
    scalekv_preset,
    skipvar_preset,
    unguided_preset,
)

_NOTHING = "nothing; the settings are Infinity's"

PRESETS = by_name(
    *late_scale_presets(_NOTHING),
    unguided_preset(_NOTHING),
    skipvar_preset(_NOTHING),
    scalekv_preset(_NOTHING),
    int8_preset(_NOTHING),
)
