"""Linear maps, fitted to a model, from what is known of pruned tokens to their hidden states.

A pruned token's hidden state after the pruned layers is predicted from its own state before them and from
what the kept tokens near it gained, by one linear map for each scale, fitted by ridge regression (Hoerl and
Kennard, "Ridge Regression", Technometrics 1970). Shapes: R rows, N tokens of a scale, K kept ones, M = N - K
pruned ones, C channels, D = `INPUTS` x C.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.schedule import Grid
from stepvar.generation.tokens import gather_tokens
from stepvar.pruning.guided import RADIUS, guided_gains
from stepvar.pruning.interpolation import slots_of

INPUTS = 4
"""Vectors that a prediction reads: see `map_inputs`."""


@dataclass(frozen=True)
class FittedMap:
    """The map of one scale.

    Attributes:
        grid: (t, h, w) of the scale.
        layers: First pruned layer, and the first one after the pruned ones.
        ratio: Share of the tokens that was pruned where it was fitted.
        error: Mean squared error on prompts that the fit did not see, relative to that of the recovery
            "guided".
        weight: [D, C], float32.
        bias: [C], float32.
    """

    grid: Grid
    layers: tuple[int, int]
    ratio: float
    error: float
    weight: Tensor = field(compare=False, repr=False)
    bias: Tensor = field(compare=False, repr=False)
    digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises ValueError when shapes do not fit each other, or a number is not finite."""
        channels = self.weight.shape[-1]
        if self.weight.shape != (INPUTS * channels, channels) or self.bias.shape != (channels,):
            raise ValueError(
                f"The map of scale {self.name} has shapes {tuple(self.weight.shape)} and "
                f"{tuple(self.bias.shape)}; a width C needs ({INPUTS} C, C) and (C): fit it again."
            )
        finite = self.weight.is_meta or bool(self.weight.isfinite().all() and self.bias.isfinite().all())
        if not finite:
            raise ValueError(f"The map of scale {self.name} holds numbers that are not finite: fit it again.")
        hashed = hashlib.sha256()
        for part in (self.weight, self.bias) if not self.weight.is_meta else ():
            hashed.update(part.cpu().contiguous().numpy().tobytes())
        object.__setattr__(self, "digest", hashed.hexdigest()[:16])

    @property
    def name(self) -> str:
        """The scale as text: "24x24", with frames "5x24x24"."""
        return "x".join(str(side) for side in (self.grid if self.grid[0] > 1 else self.grid[1:]))

    def settings(self) -> dict[str, Any]:
        """What is written down of it."""
        return {
            "scale": self.name,
            "layers": list(self.layers),
            "ratio": self.ratio,
            "error": self.error,
            "digest": self.digest,
        }


def map_inputs(
    entry: Tensor, gains: Tensor, index: Tensor, sources: Tensor, grid: Grid, pruned: Tensor
) -> Tensor:
    """What the hidden states of pruned tokens are predicted from.

    That is a token's own state before the pruned layers, the gain by likeness (see `guided_gains`), the gain
    of the kept token nearest to it, and the mean gain of the kept ones within `RADIUS`, again the nearest's
    where there is none. The first two together are what the recovery "guided" predicts.

    Args:
        entry: [R, N, C] hidden states of all tokens before the pruned layers.
        gains: [R, K, C] what the layers added to the kept ones.
        index: [R, K] their positions.
        sources: [R, N] the kept token nearest to each position.
        grid: (t, h, w); frames are apart.
        pruned: [R, M] positions of the pruned tokens.

    Returns:
        [R, M, D], the four one after the other.
    """
    near = gather_tokens(gains, sources.gather(1, pruned))
    alike = guided_gains(entry, gains, index, sources, grid, RADIUS)
    mean, found = _mean_around(gains, index, grid)
    around = torch.where(gather_tokens(found, pruned), gather_tokens(mean, pruned), near)
    return torch.cat([gather_tokens(entry, pruned), gather_tokens(alike, pruned), near, around], dim=-1)


def _mean_around(gains: Tensor, index: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean [R, N, C] of the gains [R, K, C] within the radius, and whether [R, N, 1] there are any."""
    rows, _, channels = gains.shape
    tokens = grid[0] * grid[1] * grid[2]
    places = index[..., None]
    sparse = gains.new_zeros(rows, tokens, channels + 1)
    marked = functional.pad(gains, (0, 1), value=1.0)
    sparse.scatter_(1, places.expand_as(marked), marked)
    maps = sparse.view(rows * grid[0], *grid[1:], channels + 1).permute(0, 3, 1, 2)
    pooled = functional.avg_pool2d(maps, 2 * RADIUS + 1, stride=1, padding=RADIUS)
    pooled = pooled.permute(0, 2, 3, 1).reshape(rows, tokens, channels + 1)
    share = pooled[..., channels:]
    # Sums of zeros and ones, divided by the window: none is below half a token's share.
    found = share > 0.5 / (2 * RADIUS + 1) ** 2
    return pooled[..., :channels] / torch.where(found, share, 1.0), found


def pruned_positions(index: Tensor, tokens: int) -> Tensor:
    """Positions [R, N - K] that are not among `index` [R, K], in ascending order; the host never waits."""
    kept = slots_of(index, tokens) >= 0
    return kept.to(torch.uint8).argsort(dim=1, stable=True)[:, : tokens - index.shape[1]]


def require_maps(maps: Mapping[Grid, FittedMap], plan: GenerationPlan) -> None:
    """Checks that there is a map for everything that a plan prunes.

    Raises:
        ValueError: When there is none for a scale, or it was fitted for other layers.
    """
    for entry in plan.scales:
        if not entry.prunes:
            continue
        fitted = maps.get(entry.scale.grid)
        if fitted is None:
            known = ", ".join(one.name for one in maps.values())
            raise ValueError(
                f"No map was fitted for scale {entry.scale}, only for {known}: prune those, or fit this plan "
                "by 'stepvar calibrate --recovery calibrated'."
            )
        if entry.stages or (entry.first_layer, entry.last_layer) != fitted.layers:
            first, last = fitted.layers
            raise ValueError(
                f"The map of scale {entry.scale} was fitted for one narrowing over layers {first} to "
                f"{last - 1}, and the plan prunes others: leave first_layer, dense_end and stages as they "
                "were, or fit this plan."
            )
