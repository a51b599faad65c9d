"""Recovery that follows what the tokens looked like before they were pruned: a joint bilateral filter.

Source: Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007, on features instead of pictures: what a
position gains is averaged over the kept tokens around it that entered the pruned layers with similar
features, so that an edge is not smeared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.schedule import Grid
from stepvar.generation.tokens import gather_tokens

RADIUS = 2
"""Tokens further away, in rows or columns, have no say."""

BANDWIDTH = 0.25
"""Squared difference of two tokens' features at which a weight falls to 1/e, in variances of the map."""


def guided_gains(base: Tensor, gains: Tensor, index: Tensor, slots: Tensor, grid: Grid) -> Tensor:
    """What every position gains from the kept tokens near it and like it.

    Args:
        base: [R, N, C] features of all positions before the pruned layers: what likeness is judged by.
        gains: [R, K, C] what the pruned layers added to the kept tokens.
        index: [R, K] their positions.
        slots: [R, N] which kept token a position copies that has none within reach.
        grid: (t, h, w); frames are apart.

    Returns:
        [R, N, C]; kept tokens have their own.
    """
    rows, tokens, channels = base.shape
    kept = torch.zeros(rows, tokens, 1, dtype=torch.bool, device=base.device)
    kept.scatter_(1, index[..., None], True)
    sparse = torch.zeros_like(base).scatter_(1, index[..., None].expand(-1, -1, channels), gains)
    spread = (base - base.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2)).clamp_min(1e-12)
    features, around = base.unflatten(1, grid), _padded(base, grid)
    weights = torch.stack(
        [
            _weight((features - part).square().mean(dim=-1), spread, shift)
            for shift, part in _shifted(around, grid)
        ]
    )
    present = torch.stack([part.squeeze(-1) for _, part in _shifted(_padded(kept, grid), grid)])
    # Not a number where none is within reach; those positions copy.
    weights = weights.masked_fill(~present, -torch.inf).softmax(dim=0).nan_to_num(0.0)
    mean = torch.zeros_like(features)
    for weight, (_, part) in zip(weights, _shifted(_padded(sparse, grid), grid), strict=True):
        mean.addcmul_(weight[..., None], part)
    reached = present.any(dim=0).flatten(1)[..., None]
    recovered = torch.where(reached, mean.flatten(1, 3), gather_tokens(gains, slots))
    return torch.where(kept, sparse, recovered)


def _weight(difference: Tensor, spread: Tensor, shift: tuple[int, int]) -> Tensor:
    """Logarithm of a neighbour's weight, [R, t, h, w]: less for unlike and for distant ones."""
    away = (shift[0] ** 2 + shift[1] ** 2) / (2.0 * RADIUS)
    return -difference / (BANDWIDTH * spread.view(-1, 1, 1, 1)) - away


def _padded(values: Tensor, grid: Grid) -> Tensor:
    """[R, N, C] as maps [R, t, h + 2 RADIUS, w + 2 RADIUS, C], zero outside."""
    return functional.pad(values.unflatten(1, grid), (0, 0, *(RADIUS,) * 4))


def _shifted(padded: Tensor, grid: Grid) -> list[tuple[tuple[int, int], Tensor]]:
    """Every shift of rows and columns within reach but none, and the maps so shifted, as views."""
    _, height, width = grid
    reach = range(-RADIUS, RADIUS + 1)
    return [
        (
            (down, across),
            padded[:, :, RADIUS + down : RADIUS + down + height, RADIUS + across : RADIUS + across + width],
        )
        for down in reach
        for across in reach
        if (down, across) != (0, 0)
    ]
