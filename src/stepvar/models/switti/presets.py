"""Presets of Switti, by name: Infinity's plans, since the paper has none.

Without "scalekv": its scales see themselves alone, so there is nothing to forget. At 1024 pixels the last
scales are drawn without guidance; there "unguided" is refused, since nothing is left to drop.
"""

from __future__ import annotations

from stepvar.pruning.presets import by_name, late_scale_presets, skipvar_preset, unguided_preset

_NOTHING = "nothing; the settings are Infinity's"

PRESETS = by_name(
    *late_scale_presets(_NOTHING),
    unguided_preset(_NOTHING),
    skipvar_preset(_NOTHING),
)
