"""Multi-scale binary spherical quantisation: features to bits per scale and back.

Pure functions on tensors, always in float32. One code is a sign per channel, ``(2 * bit - 1) / sqrt(d)``;
scale after scale quantises what the coarser ones left over.

Facts of the method: FoundationVision/Infinity, ``infinity/models/bsq_vae/multiscale_bsq.py`` (MIT).

Shapes: B pictures, d bits per latent position, (H, W) the latent grid, (h, w) the grid of one scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.generation.schedule import Scale
from stepvar.models.common.resizing import Grid, resize_area, resize_bilinear


@dataclass(frozen=True)
class MultiScaleCode:
    """What quantising one batch of features yields.

    Attributes:
        bits: per scale, bool ``[B, h, w, d]``: the sign of the residual, the label a transformer learns.
        used_bits: per scale, bool ``[B, h, w, d]``: the bits that entered the sum. The same as ``bits``
            unless flips were asked for.
        residuals: per scale, float32 ``[B, d, h, w]``: what was quantised at this scale.
        partial_latents: per scale, float32 ``[B, d, H, W]``: the sum of the codes up to and including it.
    """

    bits: list[Tensor]
    used_bits: list[Tensor]
    residuals: list[Tensor]
    partial_latents: list[Tensor]

    @property
    def latent(self) -> Tensor:
        """The sum of the codes of all scales, float32 ``[B, d, H, W]``: what the decoder reads."""
        return self.partial_latents[-1]

    @property
    def grids(self) -> list[Grid]:
        """The latent grid (h, w) of every scale."""
        return [(bits.shape[1], bits.shape[2]) for bits in self.bits]

    @property
    def teacher_inputs(self) -> list[Tensor]:
        """Inputs of scales 1, 2, ... as generation feeds them (bilinear), each float32 ``[B, d, h, w]``."""
        return [
            resize_bilinear(latent, grid)
            for latent, grid in zip(self.partial_latents[:-1], self.grids[1:], strict=True)
        ]

    @property
    def area_inputs(self) -> list[Tensor]:
        """The same inputs shrunk by area averaging, which the official ``encode`` returns instead."""
        return [
            resize_area(latent, grid)
            for latent, grid in zip(self.partial_latents[:-1], self.grids[1:], strict=True)
        ]


class _SignCode(torch.autograd.Function):
    """Sign code whose gradient is that of the identity (straight-through)."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, bits: Tensor) -> Tensor:
        return codes_from_bits(bits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def codes_from_bits(bits: Tensor) -> Tensor:
    """Turn bits ``[B, h, w, d]`` (bool or 0/1 integers) into codes ``[B, d, h, w]``, each +-1/sqrt(d).

    Probabilities of a 1 (floating point, 0..1) give the mean code, which lies between the two.
    """
    step = 1.0 / math.sqrt(bits.shape[-1])
    if bits.is_floating_point():
        signed = (2.0 * bits.float() - 1.0) * step
    else:
        # As a tensor: a number alone would take the default number format of the program.
        positive = torch.full((), step, dtype=torch.float32, device=bits.device)
        signed = torch.where(bits.bool(), positive, -positive)
    return signed.permute(0, 3, 1, 2).contiguous()


def quantize_multiscale(
    features: Tensor,
    grids: Sequence[Grid],
    flip_probability: float | Tensor = 0.0,
    generator: torch.Generator | None = None,
) -> MultiScaleCode:
    """Quantise features scale by scale, each scale taking the residual of the coarser ones.

    Gradients pass straight through every sign, so the same function serves training and inference.

    Args:
        features: encoder output ``[B, d, H, W]``; computed on in float32.
        grids: latent grid (h, w) of every scale, coarse to fine; the last one must be (H, W).
        flip_probability: share of the bits to flip before they enter the sum, a number or one per picture
            ``[B]``. Later residuals then contain the damage, which teaches a transformer to repair it.
        generator: source of the flips, on the device of ``features``.

    Raises:
        ValueError: the last grid is not the grid of the features.
    """
    if not grids or tuple(grids[-1]) != tuple(features.shape[-2:]):
        raise ValueError(
            f"the schedule must end at the latent grid {tuple(features.shape[-2:])}, got {list(grids)}"
        )
    residual = features.float()
    latent = torch.zeros_like(residual)
    probability = torch.as_tensor(flip_probability, dtype=torch.float32, device=features.device)
    flips_wanted = isinstance(flip_probability, Tensor) or flip_probability > 0
    code = MultiScaleCode(bits=[], used_bits=[], residuals=[], partial_latents=[])
    for grid in grids:
        shrunk = resize_area(residual, grid)
        bits = (shrunk.detach() > 0).permute(0, 2, 3, 1).contiguous()
        used = bits
        if flips_wanted:
            draw = torch.rand(bits.shape, generator=generator, dtype=torch.float32, device=bits.device)
            used = bits ^ (draw < probability.reshape(-1, 1, 1, 1))
        addition = resize_bilinear(_SignCode.apply(shrunk, used), features.shape[-2:])
        residual = residual - addition
        latent = latent + addition
        code.bits.append(bits)
        code.used_bits.append(used)
        code.residuals.append(shrunk)
        code.partial_latents.append(latent)
    return code


def known_bits(left_over: Tensor, scale: Scale, patchify: bool) -> Tensor:
    """The bits that quantise what is left over, [B, d, H, W], at one scale: bool [B, N, D] of its tokens."""
    factor = 2 if patchify else 1
    shrunk = resize_area(left_over, (scale.height * factor, scale.width * factor))
    return tokens_from_latent_bits((shrunk > 0).permute(0, 2, 3, 1), patchify).flatten(1, 2)


def latent_from_bits(bits: Sequence[Tensor], grid: Grid) -> Tensor:
    """Sum the codes of all scales at the latent grid.

    Args:
        bits: per scale, bool or 0/1 integers ``[B, h, w, d]``; may hold fewer scales than the schedule.
        grid: the latent grid (H, W) of the last scale of the schedule.

    Returns:
        float32 ``[B, d, H, W]``.

    Raises:
        ValueError: no scale was given.
    """
    if not bits:
        raise ValueError("bits of at least one scale are needed, got none")
    return torch.stack([resize_bilinear(codes_from_bits(scale), grid) for scale in bits]).sum(dim=0)


def latent_bits_from_tokens(tokens: Tensor, patchify: bool = True) -> Tensor:
    """Unfold token bits ``[B, h, w, 4d]`` into latent bits ``[B, 2h, 2w, d]`` (identity without patchify).

    Token bit ``4 * j + 2 * dy + dx`` is latent bit ``j`` at sub-position ``(dy, dx)``.
    """
    if not patchify:
        return tokens
    batch, height, width, channels = tokens.shape
    if channels % 4:
        raise ValueError(f"patchified tokens hold four latent positions each, got {channels} bits per token")
    split = tokens.reshape(batch, height, width, channels // 4, 2, 2)
    return split.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


def tokens_from_latent_bits(bits: Tensor, patchify: bool = True) -> Tensor:
    """Fold latent bits ``[B, 2h, 2w, d]`` into token bits ``[B, h, w, 4d]`` (identity without patchify)."""
    if not patchify:
        return bits
    batch, height, width, channels = bits.shape
    if height % 2 or width % 2:
        raise ValueError(f"a patchified latent grid must be even in both directions, got {(height, width)}")
    split = bits.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return split.permute(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)
