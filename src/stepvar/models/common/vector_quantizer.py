"""Multi-scale residual vector quantisation: features to code indices per scale and back.

VAR, Switti and HART share it. Scale after scale quantises what the coarser ones left over; a scale's codes
are enlarged to the latent grid and refined by a convolution before they are added. Always in float32.

Facts of the method: FoundationVision/VAR, ``models/quant.py`` (MIT).

Shapes: B pictures, V codes of D channels, (H, W) the latent grid, (h, w) the grid of one scale, N = h x w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from stepvar.generation.schedule import Scale
from stepvar.models.common.base import BlockList
from stepvar.models.common.resizing import Grid, resize_area, resize_bicubic


@cache
def refinement_index(scale: int, scales: int, refinements: int) -> int:
    """Which of several shared refinements a scale uses: that of the nearest centre, the first of two.

    Args:
        scale: Position in the schedule, counted from 0.
        scales: Length of the schedule.
        refinements: Number of refinements.
    """
    margin = 1.0 / ((3 if refinements == 4 else 2) * refinements)
    # Several schedules have exact ties, which numpy's rounding of these centres decides.
    centres = np.linspace(margin, 1.0 - margin, refinements)
    return int(np.argmin(np.abs(centres - scale / max(scales - 1, 1))))


def nearest_codes(features: Tensor, codebook: Tensor, cosine: bool = False) -> Tensor:
    """Index of the nearest code, [..., D] and [V, D] -> [...]; of several the first.

    Compares |z|^2 + |e|^2 - 2 z.e, so that near ties fall as in the official code.

    Args:
        cosine: Whether only directions are compared.
    """
    flat = features.float().flatten(0, -2)
    codes = codebook.float()
    if cosine:
        flat, codes = functional.normalize(flat, dim=1), functional.normalize(codes, dim=1)
        return (flat @ codes.T).argmax(1).view(features.shape[:-1])
    distance = flat.square().sum(1, keepdim=True) + codes.square().sum(1)
    return torch.addmm(distance, flat, codes.T, alpha=-2.0).argmin(1).view(features.shape[:-1])


class Refinement(nn.Conv2d):
    """A 3 x 3 convolution in float32, whatever the number format of its weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return functional.conv2d(codes, self.weight.float(), bias, padding=1)


@dataclass(frozen=True)
class MultiScaleIndex:
    """Codes of one batch of features, and what they leave over.

    Attributes:
        index: Per scale, int64 [B, N]: the codes in row-major order, the labels a transformer learns.
        remainders: Per scale, [B, D, H, W]: what the coarser scales had left over.
        partial_latents: Per scale, [B, D, H, W]: the sum up to and including it.
    """

    index: list[Tensor] = field(default_factory=list)
    remainders: list[Tensor] = field(default_factory=list)
    partial_latents: list[Tensor] = field(default_factory=list)

    @property
    def latent(self) -> Tensor:
        """The sum of all scales, [B, D, H, W]: what the decoder reads."""
        return self.partial_latents[-1]


class VectorQuantizer(nn.Module):
    """A codebook, and the convolutions that refine a scale's enlarged codes.

    Args:
        codes: V.
        channels: D.
        refinements: Number of convolutions that the scales share. With `refine_by_scale` there is one a
            scale instead, and this is their number.
        refine_by_scale: Whether every scale has a convolution of its own: a schedule of another length
            takes those at the nearest places.
        refinement_share: How much of a refined map comes from the convolution, 0..1; 0 has none.
    """

    def __init__(
        self,
        codes: int,
        channels: int,
        refinements: int = 4,
        refine_by_scale: bool = False,
        refinement_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.refine_by_scale = refine_by_scale
        self.refinement_share = refinement_share
        self.codebook = nn.Embedding(codes, channels)
        self.refinements: BlockList[Refinement] = BlockList(Refinement(channels) for _ in range(refinements))

    def lookup(self, index: Tensor) -> Tensor:
        """Codes of indices: [B, N] -> [B, N, D] in float32."""
        return functional.embedding(index, self.codebook.weight).float()

    def refine(self, codes: Tensor, scale: int, scales: int) -> Tensor:
        """Refines a scale's codes at the latent grid, [B, D, H, W]."""
        if not self.refinement_share or not self.refinements:
            return codes
        layer = self.refinements[refinement_index(scale, scales, len(self.refinements))]
        return torch.lerp(codes, layer(codes), self.refinement_share)

    def enlarge(self, codes: Tensor, grid: Grid, latent_grid: Grid, scale: int, scales: int) -> Tensor:
        """What a scale adds to the latent: its codes at the latent grid, refined.

        Args:
            codes: [B, N, D], of the codebook or mixtures of it.
            grid: (h, w) of the scale.
            latent_grid: (H, W).
            scale, scales: Position in the schedule, and its length.

        Returns:
            [B, D, H, W].
        """
        planes = codes.float().transpose(1, 2).unflatten(2, tuple(grid))
        return self.refine(resize_bicubic(planes, latent_grid), scale, scales)

    def add(self, latent: Tensor, codes: Tensor, scale: Scale, scales: int) -> Tensor:
        """A latent [B, D, H, W] with the codes [B, N, D] of a scale added."""
        latent_grid = (latent.shape[-2], latent.shape[-1])
        return latent + self.enlarge(codes, (scale.height, scale.width), latent_grid, scale.index, scales)

    def nearest(self, remainder: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
        """The codes of a scale nearest to a remainder [B, D, H, W]: indices [B, N], and codes [B, N, D]."""
        index = nearest_codes(map_tokens(remainder, (scale.height, scale.width)), self.codebook.weight)
        return index, self.lookup(index)

    def quantize(self, features: Tensor, grids: Sequence[Grid], cosine: bool = False) -> MultiScaleIndex:
        """Quantises features [B, D, H, W] scale by scale, each taking the remainder of the coarser ones.

        Args:
            grids: (h, w) of every scale, coarse to fine; the last one must be (H, W).
            cosine: Whether the nearest code is that of the nearest direction.

        Raises:
            ValueError: When it is not.
        """
        latent_grid = (features.shape[-2], features.shape[-1])
        if not grids or tuple(grids[-1]) != latent_grid:
            raise ValueError(f"The schedule must end at the latent grid {latent_grid}; got {list(grids)}.")
        remainder = features.float()
        latent = torch.zeros_like(remainder)
        result = MultiScaleIndex()
        for scale, grid in enumerate(grids):
            shrunk = resize_area(remainder, grid).permute(0, 2, 3, 1).flatten(1, 2)
            index = nearest_codes(shrunk, self.codebook.weight, cosine)
            addition = self.enlarge(self.lookup(index), grid, latent_grid, scale, len(grids))
            latent = latent + addition
            result.index.append(index)
            result.remainders.append(remainder)
            result.partial_latents.append(latent)
            remainder = remainder - addition
        return result

    def partial_latents(self, index: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """Sums the codes of indices: per scale [B, D, H, W], up to and including it.

        Args:
            index: Per scale [B, N]; may hold fewer scales than the schedule.
            grids: (h, w) of every scale of the schedule; the last one is the latent grid.
        """
        latents: list[Tensor] = []
        for scale, (entries, grid) in enumerate(zip(index, grids, strict=False)):
            addition = self.enlarge(self.lookup(entries), grid, grids[-1], scale, len(grids))
            latents.append(latents[-1] + addition if latents else addition)
        return latents


def map_tokens(latent: Tensor, grid: Grid) -> Tensor:
    """A latent [B, D, H, W] as the tokens that a scale reads: averaged areas, row-major, [B, N, D]."""
    return resize_area(latent, grid).flatten(2).transpose(1, 2)


def official_quantizer_keys(refinements: int, refine_by_scale: bool = False) -> dict[str, str]:
    """Our key -> official key, of a `VectorQuantizer` under the name ``quantizer``.

    The official code spells one shared refinement, several shared ones and one a scale differently.
    """
    names = {"quantizer.codebook.weight": "quantize.embedding.weight"}
    for number in range(refinements):
        path = f"quant_resi.qresi_ls.{number}"
        if refine_by_scale:
            path = f"quant_resi.{number}"
        elif refinements == 1:
            path = "quant_resi.qresi"
        for kind in ("weight", "bias"):
            names[f"quantizer.refinements.{number}.{kind}"] = f"quantize.{path}.{kind}"
    return names
