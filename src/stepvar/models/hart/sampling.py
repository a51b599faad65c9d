"""Sampling settings of HART: guidance that grows along the scales, and filters of codes."""

from __future__ import annotations

from numbers import Real

from stepvar.generation.guidance import Guidance
from stepvar.generation.sampling import CodebookSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.hart.sizes import official_top_k, progress
from stepvar.models.request import PerScale, check_filters, check_temperatures, numbers_per_scale


def make_guidance(scale: PerScale, schedule: ScaleSchedule) -> Guidance:
    """Guidance at the logits.

    Args:
        scale: One number, to which guidance grows from 1 along the scales, or one a scale; 1 is off. The
            official number g, of (1 + g) x conditional - g x unconditional, is one less.
        schedule: The scales.
    """
    weights = numbers_per_scale(scale, len(schedule), "guidance_scale")
    if isinstance(scale, Real):
        strength = weights[0] - 1.0
        return Guidance(tuple(1.0 + strength * share for share in progress(schedule)))
    return Guidance(weights)


def make_sampling(
    schedule: ScaleSchedule, temperature: PerScale, top_k: int | None, top_p: float, smooth: bool
) -> CodebookSettings:
    """How codes are drawn.

    Args:
        schedule: The scales.
        temperature: One number, or one a scale.
        top_k: None takes the official numbers.
        top_p: 0 is off.
        smooth: Whether codes are mixed.

    Raises:
        ValueError: When a number is out of range.
    """
    scales = len(schedule)
    values = numbers_per_scale(temperature, scales, "temperature")
    check_temperatures(values)
    check_filters(top_k or 0, top_p)
    kept = official_top_k(schedule) if top_k is None else (top_k,) * scales
    mixed = tuple(progress(schedule)) if smooth else (None,) * scales
    return CodebookSettings(values, kept, top_p, mixed)
