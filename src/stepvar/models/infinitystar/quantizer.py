"""Multi-scale binary spherical quantisation of videos: latents to bits per step and back.

Pure functions on tensors, in float32. A coarse code has fewer channels than the latent: it is stretched to
them by interpolating the channel axis itself, so that a latent channel mixes two neighbouring bits.

Facts of the method: FoundationVision/InfinityStar (MIT), infinity/schedules/infinity_elegant.py and
infinity/models/bsq_vae/.

Shapes: B videos, C latent channels, d bits, (t, h, w) the grid of a step, (T, H, W) that of its clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.schedule import Grid, Scale
from stepvar.models.infinitystar.schedules import VideoScale, VideoSchedule


def resize_area(latent: Tensor, grid: Grid) -> Tensor:
    """Shrinks [B, C, T, H, W] to a grid (t, h, w) by averaging areas."""
    if tuple(latent.shape[-3:]) == grid:
        return latent
    return functional.adaptive_avg_pool3d(latent, grid)


def codes_from_bits(bits: Tensor, grid: Grid) -> Tensor:
    """Bits [B, N, d] of a grid of N cells as codes +-1 / sqrt(d), float32 [B, d, t, h, w].

    Probabilities of a 1 (floating point, 0..1) give the mean code, which lies between the two.
    """
    step = 1.0 / math.sqrt(bits.shape[-1])
    if bits.is_floating_point():
        codes = (2.0 * bits.float() - 1.0) * step
    else:
        # As a tensor: a number alone would take the default number format of the program.
        positive = torch.full((), step, dtype=torch.float32, device=bits.device)
        codes = torch.where(bits.bool(), positive, -positive)
    return codes.transpose(1, 2).unflatten(2, grid)


def bits_from_residual(residual: Tensor) -> Tensor:
    """Bits [B, N, d] (bool) of a residual [B, d, t, h, w]: 1 where it is above zero."""
    return (residual > 0).flatten(2).transpose(1, 2)


def stretch(codes: Tensor, channels: int, grid: Grid) -> Tensor:
    """Codes [B, d, t, h, w] at the latent's channels and the clip's rows and columns, [B, C, t, H, W].

    Channels, rows and columns are interpolated together, frame by frame; time is never interpolated.
    """
    size = (channels, *grid[1:])
    frames = codes.transpose(1, 2)
    if tuple(frames.shape[-3:]) == size:
        return codes
    return functional.interpolate(frames, size=size, mode="trilinear", align_corners=False).transpose(1, 2)


def shrink(latent: Tensor, bits: int, grid: Grid) -> Tensor:
    """The way back, by averaging: [B, C, t, H, W] to [B, d, t, h, w], neighbouring channels together."""
    size = (bits, *grid[1:])
    frames = latent.transpose(1, 2)
    if tuple(frames.shape[-3:]) == size:
        return latent
    return functional.adaptive_avg_pool3d(frames, size).transpose(1, 2)


@dataclass(frozen=True)
class QuantizedStep:
    """What quantising yields at one step.

    Attributes:
        scale: The step.
        residual: What the earlier steps of the clip left over, [B, d, t, h, w].
        bits: Its signs, bool [B, N, d].
        used_bits: The bits that entered the sum; the same unless flips were asked for.
        before, after: Sum of the clip's codes before and after this step, [B, C, t, H, W].
    """

    scale: VideoScale
    residual: Tensor
    bits: Tensor
    used_bits: Tensor
    before: Tensor
    after: Tensor


def quantize(latent: Tensor, schedule: VideoSchedule, flip: Tensor | None = None) -> Iterator[QuantizedStep]:
    """Quantises a video latent step by step, each taking what the earlier ones of its clip left over.

    Args:
        latent: [B, C, T, H, W], as many frames as the schedule draws.
        flip: [B] share of the bits of each video that enter the sum flipped. Later residuals then contain the
            damage, which teaches a transformer to repair it.

    Raises:
        ValueError: When the latent does not have the schedule's frames, rows and columns.
    """
    wanted = (schedule.latent_frames, *schedule.position_grid)
    if tuple(latent.shape[-3:]) != wanted:
        raise ValueError(f"The latent is {tuple(latent.shape[-3:])} cells, but the schedule draws {wanted}.")
    target = total = latent
    for scale in schedule:
        if scale.index == 0 or schedule[scale.index - 1].ends_clip:
            target = latent[:, :, scale.first_frame : scale.first_frame + scale.frames].float()
            total = torch.zeros_like(target)
        residual = shrink(target - total, scale.bits, scale.grid)
        bits = bits_from_residual(residual)
        used = bits
        if flip is not None:
            used = bits ^ (
                torch.rand(bits.shape, dtype=torch.float32, device=bits.device) < flip[:, None, None]
            )
        before, total = total, total + expand(used, scale, latent.shape[1], schedule.position_grid)
        yield QuantizedStep(scale, residual, bits, used, before, total)


def expand(bits: Tensor, scale: Scale, channels: int, sides: tuple[int, int]) -> Tensor:
    """What the bits [B, N, d] of a step add to its clip, [B, C, t, H, W]."""
    return stretch(codes_from_bits(bits, scale.grid), channels, (scale.frames, *sides))
