"""Presets of VAREdit, by name: Infinity's plans, applied to the target; the source always runs whole."""

from __future__ import annotations

from stepvar.pruning.presets import (
    by_name,
    int8_preset,
    late_scale_presets,
    scalekv_preset,
    skipvar_preset,
    unguided_preset,
)

_UNMEASURED = "nothing yet: the plans for Infinity, whose transformer this is"

PRESETS = by_name(
    *late_scale_presets(_UNMEASURED),
    unguided_preset(_UNMEASURED),
    skipvar_preset(_UNMEASURED),
    scalekv_preset(_UNMEASURED),
    int8_preset(_UNMEASURED),
)
