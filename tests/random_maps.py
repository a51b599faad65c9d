"""A calibrated recovery without a fit: its maps are nearly those of recovery by likeness."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stepvar.generation.weight_sketch import WeightSketch
from stepvar.pruning.calibrated import INPUTS, FittedMap
from stepvar.pruning.recovery import Calibrated


def random_maps(
    grids: Sequence[tuple[int, int]],
    channels: int,
    layers: tuple[int, int],
    fitted_to: WeightSketch | None = None,
    noise: float = 0.01,
) -> Calibrated:
    """Maps for pictures' grids (rows, columns), always the same ones."""
    random = torch.Generator().manual_seed(0)
    likeness = torch.cat([torch.eye(channels)] * 2 + [torch.zeros(channels, channels)] * (INPUTS - 2))
    maps = []
    for grid in grids:
        weight = likeness + noise * torch.randn(likeness.shape, generator=random)
        bias = noise * torch.randn(channels, generator=random)
        maps.append(FittedMap((1, *grid), layers, 0.5, 0.75, weight, bias))
    return Calibrated(tuple(maps), fitted_to, "structure+texture")
