"""Joint bilateral filter: gains of pruned tokens from kept ones that were near and similar.

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
BANDWIDTH = 0.25


def guided_gains(
    base: Tensor,
    gains: Tensor,
    index: Tensor,
    sources: Tensor,
    grid: Grid,
    radius: int = RADIUS,
    bandwidth: float = BANDWIDTH,
) -> Tensor:
    """What every position gains: a weighted mean of the gains of kept tokens near it and similar to it.

    Args:
        base: [R, N, C] features of all positions before the pruned layers, which similarity is measured on.
        gains: [R, K, C] what the pruned layers added to the kept tokens.
        index: [R, K] their positions.
        sources: [R, N] which kept token a position copies that has none within the radius.
        grid: (t, h, w); frames are apart.
        radius: Farthest rows and columns that count, in tokens.
        bandwidth: Squared difference of features at which a weight falls to 1/e, in variances of the map.

    Returns:
        [R, N, C]; kept tokens have their own.
    """
    rows, tokens, channels = base.shape
    kept = torch.zeros(rows, tokens, 1, dtype=torch.bool, device=base.device)
    kept.scatter_(1, index[..., None], True)
    sparse = torch.zeros_like(base).scatter_(1, index[..., None].expand(-1, -1, channels), gains)
    spread = (base - base.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2)).clamp_min(1e-12)
    features, around = base.unflatten(1, grid), _padded(base, grid, radius)
    weights = torch.stack(
        [
            -(features - part).square().mean(dim=-1) / (bandwidth * spread.view(-1, 1, 1, 1))
            - (shift[0] ** 2 + shift[1] ** 2) / (2.0 * radius)
            for shift, part in _shifted(around, grid, radius)
        ]
    )
    neighbours = _shifted(_padded(kept, grid, radius), grid, radius)
    present = torch.stack([part.squeeze(-1) for _, part in neighbours])
    # Not a number where none is within reach; those positions copy.
    weights = weights.masked_fill(~present, -torch.inf).softmax(dim=0).nan_to_num(0.0)
    mean = torch.zeros_like(features)
    for weight, (_, part) in zip(weights, _shifted(_padded(sparse, grid, radius), grid, radius), strict=True):
        mean.addcmul_(weight[..., None], part)
    reached = present.any(dim=0).flatten(1)[..., None]
    recovered = torch.where(reached, mean.flatten(1, 3), gather_tokens(gains, sources))
    return torch.where(kept, sparse, recovered)


def _padded(values: Tensor, grid: Grid, radius: int) -> Tensor:
    """[R, N, C] as maps [R, t, h + 2 radius, w + 2 radius, C], zero outside."""
    return functional.pad(values.unflatten(1, grid), (0, 0, *(radius,) * 4))


def _shifted(padded: Tensor, grid: Grid, radius: int) -> list[tuple[tuple[int, int], Tensor]]:
    """All shifts by (rows, columns) within the radius except (0, 0), and the maps so shifted, as views."""
    _, height, width = grid
    reach = range(-radius, radius + 1)
    return [
        (
            (down, across),
            padded[:, :, radius + down : radius + down + height, radius + across : radius + across + width],
        )
        for down in reach
        for across in reach
        if (down, across) != (0, 0)
    ]
