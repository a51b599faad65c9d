"""What a HART generation draws with: guidance that grows along the scales, and filters of codes."""

from __future__ import annotations

from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.sampling import CodebookSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.hart.sizes import official_top_k, progress
from stepvar.models.request import PerScale, check_filters, check_temperatures


def make_guidance(scale: PerScale, schedule: ScaleSchedule) -> Guidance:
    """Guidance at the logits.

    Args:
        scale: g of (1 + g) x conditional - g x unconditional; one number, of which every scale has its share,
            or one a scale.
        schedule: The scales.
    """
    if isinstance(scale, (int, float)):
        return Guidance(tuple(1.0 + scale * share for share in progress(schedule)))
    return Guidance(tuple(1.0 + value for value in per_scale(scale, len(schedule), "guidance_scale")))


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
    values = per_scale(temperature, scales, "temperature")
    check_temperatures(values)
    check_filters(top_k or 0, top_p)
    kept = official_top_k(schedule) if top_k is None else (top_k,) * scales
    mixed = tuple(progress(schedule)) if smooth else (None,) * scales
    return CodebookSettings(values, kept, top_p, mixed)
