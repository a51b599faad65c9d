"""Training of the video VAE on crops of rendered scenes.

The first part of the budget trains on single frames: a fifth of the work, and the content of a frame is
learned there. Losses use a third of a video's frames, another third at every step. A separate term covers the
moving pixels: they are a tenth of the frame, and the other terms are dominated by the background's noise,
so that without it reconstructed videos stand still for a long time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.models.infinitystar.convolutions import LatentNorm
from stepvar.models.infinitystar.quantizer import QuantizedStep, quantize, shrink, stretch
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.training.common.crops import PIXELS_PER_TOKEN, stream, to_bytes, to_signed
from stepvar.training.common.vae_losses import low_pass
from stepvar.training.common.vae_trainer import (
    Reconstruction,
    VAETrainer,
    VAETraining,
    initialise_vae,
    mean_psnr,
    scale_entropies,
)
from stepvar.training.video.crops import VideoCrops, fixed_videos
from stepvar.training.video.sizes import DETAIL_BITS, SIZE

_EVALUATION_VIDEOS = 8
_TRUNCATIONS = 3
_MOVES = 0.2
"""Least difference, in -1..1, of a moving pixel from its value in the first frame."""

_SHEET_FRAMES = (0, 2, 4, 6, 8)


@dataclass(frozen=True)
class VideoVAETraining(VAETraining):
    """Settings of a run.

    Attributes:
        motion_weight: Weight of the loss of the moving pixels.
        frame_stride: Distance between the frames that the other losses use.
        picture_share: First part of the budget, which trains on single frames.
        pictures: Crops a step while they are single frames.
    """

    output: Path = Path("runs/video/vae")
    minutes: float = 20.0
    batch: int = 4
    crop: int = 56
    motion_weight: float = 1.0
    frame_stride: int = 3
    picture_share: float = 0.3
    pictures: int = 16


def build_vae() -> InfinityStarVAE:
    """The video VAE with fresh weights: 8 x 8 pixels and four frames a cell, 32 bits."""
    vae = InfinityStarVAE(
        channels=(32, 64, 64, 64), latent_channels=DETAIL_BITS, blocks=1, patch=1, pixel_block=2
    )
    initialise_vae(vae)
    for module in vae.modules():
        if isinstance(module, LatentNorm):
            # The latent's influence on a norm begins small.
            module.conv_y.conv.weight.data.mul_(0.1)
            module.conv_b.conv.weight.data.mul_(0.1)
            if module.conv_y.conv.bias is not None:
                nn.init.ones_(module.conv_y.conv.bias)
    for layer in (vae.proj_down, vae.proj_up):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return vae


class VideoVAETrainer(VAETrainer[VideoVAETraining, InfinityStarVAE]):
    """Trains the video VAE."""

    def __init__(self, settings: VideoVAETraining) -> None:
        super().__init__(settings, SIZE.canvas)
        self.motion = torch.zeros(())

    def build(self) -> InfinityStarVAE:
        start = self.settings.start
        return InfinityStarVAE.from_pretrained(start, torch_dtype=torch.float32) if start else build_vae()

    def phase(self) -> tuple[int, ...]:
        return (*super().phase(), 1 if self.progress < self.settings.picture_share else SIZE.frames)

    def crops(self, batch: int, side: int, seed: int) -> Iterator[Tensor]:
        _, frames = self.phase()
        count = self.settings.pictures if frames == 1 else batch
        return stream(VideoCrops(count, side, seed, frames), self.settings.workers)

    def reconstruct(self, target: Tensor) -> Reconstruction:
        features = self.model.encode(target).float()
        steps = list(quantize(features, SIZE.schedule(target.shape[-1], features.shape[2])))
        latent = straight_through(steps, features)
        whole = len(target) - self.truncated(len(target))
        if whole < len(target):
            latent, target = _truncate(steps, features, latent, target, whole)
        video = self.model.decode_pixels(latent)
        self.motion = motion_loss(video, target)
        stride = min(self.settings.frame_stride, target.shape[2])
        start = int(torch.randint(stride, ()))
        pictures, targets = (_as_pictures(part[:, :, start::stride]) for part in (video, target))
        frames = len(pictures) // len(target)
        residuals = [step.residual.flatten(2, 3) for step in steps]
        codes = torch.cat([step.after for step in steps if step.scale.ends_clip], dim=2)
        bits = [step.bits for step in steps]
        return Reconstruction(pictures, targets, whole * frames, features, codes, residuals, bits)

    def losses(self, result: Reconstruction) -> dict[str, Tensor]:
        parts = super().losses(result)
        parts["motion"] = self.motion
        parts["loss"] = parts["loss"] + self.settings.motion_weight * self.motion
        return parts

    def evaluate(self) -> tuple[dict[str, Any], Tensor]:
        return measure_vae(self.average, fixed_videos(_EVALUATION_VIDEOS, seed=77).to(self.device))


def straight_through(steps: list[QuantizedStep], features: Tensor) -> Tensor:
    """The codes of all clips [B, C, T, H, W], with the gradient of the features."""
    codes = torch.cat([step.after for step in steps if step.scale.ends_clip], dim=2)
    return features + (codes - features).detach()


def _truncate(
    steps: list[QuantizedStep], features: Tensor, latent: Tensor, target: Tensor, whole: int
) -> tuple[Tensor, Tensor]:
    """Replaces the videos after the first `whole` by their first scales, and their targets."""
    per_clip = len(SIZE.sides) + sum(SIZE.repetitions) - len(SIZE.repetitions)
    last = per_clip - 1 - int(torch.randint(1, _TRUNCATIONS + 1, ()))
    coarse = []
    for step in steps[last::per_clip]:
        own = features[whole:, :, step.scale.first_frame :][:, :, : step.scale.frames]
        frames, height, width = own.shape[-3:]
        small = shrink(own, step.scale.bits, step.scale.grid)
        resized = stretch(small, own.shape[1], (frames, height, width))
        coarse.append(resized + (step.after[whole:] - resized).detach())
    latent = torch.cat((latent[:whole], torch.cat(coarse, dim=2)))
    rows, columns = (side * PIXELS_PER_TOKEN for side in steps[last].scale.grid[1:])
    blurred = low_pass(target[whole:].flatten(1, 2), (rows, columns)).view_as(target[whole:])
    return latent, torch.cat((target[:whole], blurred))


def motion_loss(video: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the moving pixels, and of their changes from frame to frame.

    Args:
        video, target: [B, 3, F, H, W] in -1..1.

    Returns:
        A scalar, 0 where nothing moves.
    """
    error = video - target
    if error.shape[2] == 1:
        return error.new_zeros(())
    moving = ((target - target[:, :, :1]).abs().amax(dim=(1, 2), keepdim=True) > _MOVES).float()
    share = moving.mean().clamp_min(1e-3)
    changes = error[:, :, 1:] - error[:, :, :-1]
    return ((error.abs() * moving).mean() + (changes.abs() * moving).mean()) / share


def _as_pictures(video: Tensor) -> Tensor:
    """[B, 3, F, H, W] -> [B F, 3, H, W]."""
    return video.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def measure_vae(vae: InfinityStarVAE, videos: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Measures a VAE on whole videos.

    Args:
        vae: In evaluation mode.
        videos: uint8 [B, 3, F, side, side], at least four.

    Returns:
        The mean PSNR in dB, of the first frame and of the last, the entropy of the bits per step; and a
        sheet uint8 [rows, columns, 3]: under each of four videos' frames, those of its reconstruction.
    """
    target = to_signed(videos)
    steps = list(quantize(vae.encode(target), SIZE.schedule()))
    codes = torch.cat([step.after for step in steps if step.scale.ends_clip], dim=2)
    decoded = vae.decode_pixels(codes).clamp(-1.0, 1.0)
    measures = {
        "evaluation_psnr": round(mean_psnr(decoded, target), 2),
        "first_frame_psnr": round(mean_psnr(decoded[:, :, 0], target[:, :, 0]), 2),
        "last_frame_psnr": round(mean_psnr(decoded[:, :, -1], target[:, :, -1]), 2),
        "evaluation_entropy": [
            round(value, 3) for value in scale_entropies([step.bits for step in steps]).tolist()
        ],
    }
    both = torch.stack((to_bytes(target[:4]), to_bytes(decoded[:4])), dim=1)[:, :, :, _SHEET_FRAMES]
    sheet = both.permute(0, 1, 4, 3, 5, 2)
    return measures, sheet.reshape(8 * videos.shape[-1], len(_SHEET_FRAMES) * videos.shape[-1], 3).cpu()
