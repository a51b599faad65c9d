"""Scale schedules of HART, and what the official sampling derives from a scale's position in one.

Source: mit-han-lab/hart, hart/modules/models/transformer/hart_transformer_t2i.py
(`autoregressive_infer_cfg`) and hart/modules/networks/utils.py (`mask_by_order`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stepvar.generation.schedule import Scale, ScaleSchedule

Sides = tuple[int, int]

TOP_K_EARLY, TOP_K_LATE, FIRST_LATE = 600, 300, 7
"""The official top-k: of the first seven scales, and of all later ones."""


def part_counts(tokens: int, parts: int) -> list[int]:
    """Tokens of each part of a map, along a quarter of a cosine: few at first, many at last.

    Raises:
        ValueError: When there are too many parts for so few tokens.
    """
    remaining, counts = tokens, []
    for part in range(1, parts):
        left = max(1, min(remaining - 1, math.floor(tokens * math.cos(math.pi / 2 * part / parts))))
        counts.append(remaining - left)
        remaining = left
    counts.append(remaining)
    if parts < 1 or min(counts) < 1:
        raise ValueError(f"A map of {tokens} tokens cannot be drawn in {parts} parts; use fewer.")
    return counts


def scale_schedule(grids: Sequence[Sides], parts: int = 1) -> ScaleSchedule:
    """The schedule of grids (rows, columns), with the last map drawn in one or several parts.

    Raises:
        ValueError: When there are too many parts.
    """
    whole = ScaleSchedule.from_grids(grids)
    if parts == 1:
        return whole
    last = whole.final
    pieces = [
        replace(last, index=last.index + number, part=count)
        for number, count in enumerate(part_counts(last.tokens, parts))
    ]
    return ScaleSchedule((*whole.scales[:-1], *pieces), whole.position_grid)


def levels(schedule: ScaleSchedule) -> list[int]:
    """Of every step, the position of its map among the maps: the parts of the last map share theirs."""
    last = sum(scale.part is None for scale in schedule)
    return [min(scale.index, last) for scale in schedule]


def progress(schedule: ScaleSchedule) -> list[float]:
    """How far along each step is, 0..1: what guidance and smoothing grow with.

    The last map has the value of the one before it, as in the official code, so that 1 is never reached.
    """
    numbers = levels(schedule)
    last = numbers[-1]
    return [min(number, last - 1) / last for number in numbers]


def official_top_k(schedule: ScaleSchedule) -> tuple[int, ...]:
    """The official number of codes that each step draws from."""
    return tuple(TOP_K_EARLY if number < FIRST_LATE else TOP_K_LATE for number in levels(schedule))


def draw_orders(generators: Sequence[torch.Generator], final: Scale, device: torch.device) -> Tensor:
    """A random order of the last map's positions for every image, [B, N], from its own generator."""
    tokens = final.height * final.width
    orders = [
        torch.randperm(tokens, generator=generator, device=generator.device).to(device)
        for generator in generators
    ]
    return torch.stack(orders)
