"""Dense token maps from kept tokens: nearest, bilinear and area interpolation on a grid."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.guidance import UNCONDITIONAL
from stepvar.generation.schedule import Grid
from stepvar.generation.tokens import gather_tokens


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
    batch = len(index)
    far = 4 * (height**2 + width**2 + (frame_distance * frames) ** 2)
    if far * tokens >= 2**62:
        raise ValueError(f"The grid {grid} is too large for exact recovery.")
    keys = torch.full((batch, tokens), far * tokens, dtype=torch.int64, device=index.device)
    keys.scatter_(1, index, index)
    keys = keys.view(batch, frames, height, width)
    for axis, unit in ((3, 1), (2, 1), (1, frame_distance)):
        keys = _spread(keys, axis, unit * unit * tokens)
    source = keys.reshape(batch, tokens) % tokens
    return slots_of(index, tokens).gather(1, source)


def slots_of(index: Tensor, tokens: int) -> Tensor:
    """Which of the kept tokens [B, K] lies at each position, [B, N]; -1 at pruned positions."""
    batch, kept = index.shape
    slots = torch.full((batch, tokens), -1, dtype=torch.int64, device=index.device)
    return slots.scatter_(
        1, index, torch.arange(kept, dtype=torch.int64, device=index.device).expand(batch, kept)
    )


def anchor_positions(grid: Grid, stride: int) -> list[int]:
    """Positions of a uniform grid of anchors in every frame, `stride` tokens apart in each direction."""
    frames, height, width = grid

    def places(size: int) -> range:
        return range(min(stride // 2, (size - 1) // 2), size, stride)

    return [
        (frame * height + row) * width + column
        for frame in range(frames)
        for row in places(height)
        for column in places(width)
    ]


def nearest_anchor(index: Tensor, grid: Grid, stride: int, frame_distance: int = 1) -> Tensor:
    """For every position, which kept token it copies when only anchors are copied.

    Kept tokens stay themselves; the others copy the nearest of `anchor_positions`, which are all kept.

    Args:
        index: [B, K] kept positions.

    Returns:
        [B, N] entries 0..K-1.
    """
    anchors = torch.tensor(anchor_positions(grid, stride), dtype=torch.int64, device=index.device)
    nearest = anchors[nearest_kept(anchors[None], grid, frame_distance)]
    slots = slots_of(index, nearest.shape[1])
    return torch.where(slots >= 0, slots, slots.gather(1, nearest.expand(len(index), -1)))


def bilinear(values: Tensor, index: Tensor, sources: Tensor, grid: Grid) -> Tensor:
    """Dense values, smooth where kept tokens are near.

    A pruned position is the mean of the kept tokens among its eight neighbours in the frame, weighted as
    in bilinear interpolation (a side 2, a corner 1); without any it copies what `sources` says.

    Args:
        values: [R, K, C] of the kept tokens.
        index: [R, K] their positions.
        sources: [R, N] which kept token each position copies otherwise.

    Returns:
        [R, N, C].
    """
    rows, tokens = sources.shape
    kept = values.new_zeros(rows, tokens, 1).scatter_(1, index[..., None], 1.0)
    sparse = values.new_zeros(rows, tokens, values.shape[2])
    sparse.scatter_(1, index[..., None].expand_as(values), values)
    weights = _binomial(kept, grid)
    mean = _binomial(sparse, grid) / weights.clamp_min(1.0)
    copied = gather_tokens(values, sources)
    return torch.where((kept == 0) & (weights > 0), mean, copied)


def _binomial(values: Tensor, grid: Grid) -> Tensor:
    """Weighs values [R, N, C] by 1 2 1 along the rows and columns of each frame; outside is zero."""
    maps = values.unflatten(1, grid)
    for axis in (2, 3):
        size = maps.shape[axis]
        spread = 2.0 * maps
        spread.narrow(axis, 0, size - 1).add_(maps.narrow(axis, 1, size - 1))
        spread.narrow(axis, 1, size - 1).add_(maps.narrow(axis, 0, size - 1))
        maps = spread
    return maps.flatten(1, 3)


def match_rows(values: Tensor, rows: int, remaining: str) -> Tensor:
    """Rows of [R, N, C] that belong to those of a later scale.

    Args:
        values: Of an earlier scale.
        rows: How many the later one has: fewer where guidance was dropped in between; where it has more, the
            earlier ones are repeated.
        remaining: Which copies are left where guidance was dropped.
    """
    if len(values) < rows:
        values = values.repeat(rows // len(values), 1, 1)
    first = len(values) - rows if remaining == UNCONDITIONAL else 0
    return values[first : first + rows]


def scatter_tokens(dense: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """A copy of dense values [R, N, C] with `values` [R, K, C] at positions `index` [R, K]."""
    return dense.scatter(1, index.unsqueeze(-1).expand_as(values), values)


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
    place = torch.arange(size, dtype=torch.int64, device=keys.device)
    moved = keys.movedim(axis, -1).contiguous()
    spread = torch.empty_like(moved)
    # A few target positions at a time: the table stays near-linear in memory.
    step = max(1, 2**20 // keys.numel())
    for start in range(0, size, step):
        targets = place[start : start + step, None]
        table = moved.unsqueeze(-2) + unit * (targets - place).square()
        spread[..., start : start + step] = table.amin(dim=-1)
    return spread.movedim(-1, axis)
