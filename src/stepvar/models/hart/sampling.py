"""What a HART generation draws with: guidance that grows along the scales, and filters of codes."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.sampling import CodebookSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.hart.sizes import official_top_k, progress

PerScale = float | Sequence[float]


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
    for value in values:
        if not value > 0:
            raise ValueError(f"temperature is {value:g}; it must be positive (top_k=1 takes the best).")
    if (top_k or 0) < 0 or not 0.0 <= top_p <= 1.0:
        raise ValueError(f"top_k is {top_k} and top_p is {top_p:g}; use 0 or more, and 0 to 1.")
    kept = official_top_k(schedule) if top_k is None else (top_k,) * scales
    mixed = tuple(progress(schedule)) if smooth else (None,) * scales
    return CodebookSettings(values, kept, top_p, mixed)
