"""Masks of pixels at every scale: which tokens an edit draws, and which of the known ones run.

A token is *free* (drawn) or *known* (the picture's own). With a(k, i) the share of the cell of token i of
scale k that the mask covers, the token is free where

    a(k, i) > `COARSE_SHARE`    at all but the late scales,
    a(k, i) > 0                 at the late scales, where any touch is enough.

So coarse tokens, which stand for much more than a small mask, stay the picture's, and nothing of the masked
pixels survives in fine ones. `keep` scales at the start are known wholly, whatever the mask says.

Shapes: B pictures, (H, W) pixels, N = h x w tokens of a scale in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.fields import require_fields
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.pruning.interpolation import anchor_positions

COARSE_SHARE = 0.5
"""Of a cell: how much of it a mask must cover before a token of a coarse scale is drawn."""

LATE_SCALES = 4
"""Last scales, at which any touch frees a token, and at which tokens far from the mask need not run."""

MARGIN = 1
"""Known tokens around the free ones that run with them, in token sides."""


def late(scale: Scale, schedule: ScaleSchedule, late_scales: int = LATE_SCALES) -> bool:
    """Whether a scale is one of the last `late_scales`; the first scale never is."""
    return scale.index >= max(len(schedule) - late_scales, 1)


def covered_shares(coverage: Tensor, scale: Scale) -> Tensor:
    """Share of every token's cell that masks cover.

    Args:
        coverage: [B, H, W] in 0..1, how much of each pixel may change.

    Returns:
        [B, N] float32.
    """
    return functional.adaptive_avg_pool2d(coverage[:, None], (scale.height, scale.width)).flatten(1)


def free_tokens(
    coverage: Tensor, schedule: ScaleSchedule, keep: int = 0, late_scales: int = LATE_SCALES
) -> tuple[Tensor, ...]:
    """Tokens that are drawn, per scale, bool [B, N]; the rule is the module's.

    Args:
        coverage: [B, H, W] float32 in 0..1.
        keep: So many scales at the start have none.
    """
    masks = []
    for scale in schedule:
        share = covered_shares(coverage, scale)
        least = 0.0 if late(scale, schedule, late_scales) else COARSE_SHARE
        masks.append((share > least) & (scale.index >= keep))
    return tuple(masks)


def grown(free: Tensor, scale: Scale, margin: int) -> Tensor:
    """Tokens [B, N] that lie within `margin` rows and columns of a free one, itself included."""
    if margin == 0:
        return free
    margin = min(margin, max(scale.height, scale.width))
    maps = free.float().unflatten(1, (1, scale.height, scale.width))
    return functional.max_pool2d(maps, 2 * margin + 1, stride=1, padding=margin).flatten(1) > 0


@dataclass(frozen=True)
class RegionRule:
    """Which tokens of a late scale run in an edit: the free ones, and known ones near them.

    Attributes:
        margin: See `MARGIN`.
        late_scales: How many scales at the end; 0 runs every token everywhere.

    Raises:
        ValueError: When a number is negative.
    """

    margin: int = MARGIN
    late_scales: int = LATE_SCALES

    def __post_init__(self) -> None:
        require_fields(self, "the edit")
        if self.margin < 0 or self.late_scales < 0:
            raise ValueError(
                f"margin is {self.margin} and late_scales is {self.late_scales}; both are 0 or more."
            )

    def regions(
        self, free: Sequence[Tensor], schedule: ScaleSchedule, anchor_stride: int | None = None
    ) -> tuple[Tensor | None, ...]:
        """Positions that run, per scale, int64 [B, c] ascending; None where all do.

        Args:
            free: Per scale [B, N]; every picture must have as many tokens in its region as the others.
            anchor_stride: Distance of known tokens that run too, on a uniform grid; None for none.

        Raises:
            ValueError: When pictures differ in how many tokens would run.
        """
        regions: list[Tensor | None] = []
        for scale, mask in zip(schedule, free, strict=True):
            if not late(scale, schedule, self.late_scales) or not bool(mask.any()):
                regions.append(None)
                continue
            near = grown(mask, scale, self.margin)
            if anchor_stride is not None:
                near[:, anchor_positions(scale.grid, anchor_stride)] = True
            counts = near.sum(dim=1)
            if not bool((counts == counts[0]).all()):
                raise ValueError("Masks of different areas cannot run together: draw their pictures apart.")
            everything = int(counts[0]) == scale.tokens
            regions.append(None if everything else near.nonzero()[:, 1].view(len(mask), -1))
        return tuple(regions)


def counts_of(free: Tensor, scale: Scale, margin: int) -> list[int]:
    """How many tokens of a scale lie in each picture's region."""
    counts: list[int] = grown(free, scale, margin).sum(dim=1).tolist()
    return counts


def latent_places(free: Tensor, scale: Scale, latent_grid: tuple[int, int]) -> Tensor:
    """Where the finest codes are free, bool [B, 1, H', W'] on the latent grid: whole tokens of it."""
    maps = free.unflatten(1, (1, scale.height, scale.width)).float()
    return functional.interpolate(maps, size=latent_grid, mode="nearest") > 0


def kept_scales(strength: float, schedule: ScaleSchedule) -> int:
    """How many scales at the start stay the picture's own at a strength.

    Of K scales the last round(strength x K) are drawn, at least one.

    Raises:
        ValueError: When the strength is out of range.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(
            f"strength is {strength:g}; it is the share of the scales that are drawn, above 0 and up to 1."
        )
    return len(schedule) - max(int(strength * len(schedule) + 0.5), 1)
