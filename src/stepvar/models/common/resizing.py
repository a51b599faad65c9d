"""Resizing of latent maps [B, d, H, W] by three rules, each the identity where the size is right already."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as functional
from torch import Tensor

Grid = tuple[int, int]


def resize_bilinear(latent: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize ``[B, d, H, W]`` to ``grid`` by plain bilinear interpolation, also when it shrinks."""
    if tuple(latent.shape[-2:]) == tuple(grid):
        return latent
    return functional.interpolate(latent, size=tuple(grid), mode="bilinear", align_corners=False)


def resize_bicubic(latent: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize ``[B, d, H, W]`` to ``grid`` by bicubic interpolation (a = -0.75), without antialiasing."""
    if tuple(latent.shape[-2:]) == tuple(grid):
        return latent
    return functional.interpolate(latent, size=tuple(grid), mode="bicubic", align_corners=False)


def resize_area(latent: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize ``[B, d, H, W]`` to ``grid`` by averaging areas (adaptive average pooling)."""
    if tuple(latent.shape[-2:]) == tuple(grid):
        return latent
    return functional.adaptive_avg_pool2d(latent, (grid[0], grid[1]))
