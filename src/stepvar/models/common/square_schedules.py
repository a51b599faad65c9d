"""Scale schedules of VAR and Switti, and how official files state theirs.

Source: FoundationVision/VAR, utils/arg_util.py and models/var.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.common.official import shape_of

SIDES_BY_PIXELS: dict[int, tuple[int, ...]] = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
"""Sides of the square token maps by the side of the picture, for 16 pixels a token."""

LEVELS = "lvl_1L"
"""Official buffer with the scale of every token: the one place where a file states its schedule."""


def levels_of(sides: Sequence[int]) -> Tensor:
    """The official buffer for a schedule, [1, L] int64."""
    tokens = torch.tensor([side**2 for side in sides], dtype=torch.int64, device="cpu")
    return torch.arange(len(tokens), device="cpu").repeat_interleave(tokens)[None]


def read_sides(state: Mapping[str, Tensor], length: int, source: str) -> list[int]:
    """Reads the schedule of an official state dict.

    Args:
        state: The state dict. On the meta device only the schedules above are recognised, by their number of
            scales and tokens; otherwise the buffer of levels states any.
        length: L, tokens of all scales.
        source: What errors call the state dict.

    Raises:
        CheckpointError: When it states too little, or contradicts itself.
    """
    scales = shape_of(state, "lvl_embed.weight", source)[0]
    levels = state.get(LEVELS)
    if levels is not None and not levels.is_meta:
        counts = torch.bincount(levels.flatten().long().clamp(0, scales), minlength=scales).tolist()
        sides = [math.isqrt(count) for count in counts]
        if [side**2 for side in sides] == counts and len(sides) == scales and sum(counts) == length:
            return sides
        raise CheckpointError(f"{source} is damaged: {LEVELS} names no schedule of {scales} square scales.")
    for known in SIDES_BY_PIXELS.values():
        if len(known) == scales and sum(side**2 for side in known) == length:
            return list(known)
    raise CheckpointError(
        f"{source} does not say its schedule: {scales} scales with {length} tokens are none that the "
        f"official code names, and the buffer {LEVELS} is missing; give the file as it was published."
    )
