"""Rebuilding a dense token map from the kept tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.schedule import Grid


def nearest_kept(index: Tensor, grid: Grid, frame_distance: int = 1) -> Tensor:
    """For every position, which kept token is nearest in space (StepVAR, eq. 8).

    An exact Euclidean distance transform, one axis after the other, on integer keys that hold
    squared distance and source position: ties go to the first position in row-major order. Costs
    N x (t + h + w) integer operations, no N x K table.

    Args:
        index: [B, K] kept positions, row-major in `grid`, without repeats.
        grid: (t, h, w).
        frame_distance: Distance of two successive frames, in token sides.

    Returns:
        [B, N] entries 0..K-1: which of the kept tokens each position copies.

    Raises:
        ValueError: When a grid is too large for 64-bit keys.
    """
    frames, height, width = grid
    tokens = frames * height * width
    batch, kept = index.shape
    far = 4 * (height**2 + width**2 + (frame_distance * frames) ** 2)
    if far * tokens >= 2**62:
        raise ValueError(f"The grid {grid} is too large for exact recovery.")
    keys = torch.full((batch, tokens), far * tokens, dtype=torch.int64, device=index.device)
    keys.scatter_(1, index, index)
    keys = keys.view(batch, frames, height, width)
    for axis, unit in ((3, 1), (2, 1), (1, frame_distance)):
        keys = _spread(keys, axis, unit * unit * tokens)
    source = keys.reshape(batch, tokens) % tokens
    slots = torch.zeros(batch, tokens, dtype=torch.int64, device=index.device)
    slots.scatter_(1, index, torch.arange(kept, device=index.device).expand(batch, kept))
    return slots.gather(1, source)


def area_resized(values: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Token values resized from one grid to another by averaging areas (FastVAR's interpolation).

    Target row i averages the source rows floor(i h / H) to ceil((i + 1) h / H) - 1; frames and columns
    likewise.

    Args:
        values: [R, N, C] with N = t x h x w of `grid`.

    Returns:
        [R, M, C] with M = t x h x w of `target`.
    """
    maps = values.transpose(1, 2).unflatten(2, grid)
    return functional.adaptive_avg_pool3d(maps, target).flatten(2).transpose(1, 2)


def _spread(keys: Tensor, axis: int, unit: int) -> Tensor:
    """Smallest key + unit x (distance along axis)^2 over all positions of that axis."""
    size = keys.shape[axis]
    if size == 1:
        return keys
    place = torch.arange(size, device=keys.device)
    moved = keys.movedim(axis, -1).contiguous()
    spread = torch.empty_like(moved)
    # A few target positions at a time: the table stays near-linear in memory.
    step = max(1, 2**20 // keys.numel())
    for start in range(0, size, step):
        targets = place[start : start + step, None]
        table = moved.unsqueeze(-2) + unit * (targets - place).square()
        spread[..., start : start + step] = table.amin(dim=-1)
    return spread.movedim(-1, axis)
