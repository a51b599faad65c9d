"""Training of the embedded video tokenizer on rendered scenes, within a budget of minutes.

Run ``python -m stepvar.training.video.train_vae --minutes 20 --output runs/video/tokenizer``; the same
command resumes an interrupted run.

The first part of the budget trains on single frames: a fifth of the work, and what is in a frame is learned
there. As with pictures, a part of every batch decodes only the first scales and is compared with what these
scales can show; so coarse scales carry layout and colour. Losses look at a third of a video's frames, another
third at every step. A term of its own looks at what moves: a tenth of the pixels, which the others drown in
the background's noise, so that a video stands still for a long time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.models.infinitystar.quantizer import QuantizedStep, quantize, shrink, stretch
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.training.pictures.crops import to_bytes, to_signed
from stepvar.training.run import read_settings
from stepvar.training.vae_losses import low_pass
from stepvar.training.vae_trainer import (
    AutoencoderTrainer,
    AutoencoderTraining,
    Reconstruction,
    mean_psnr,
    scale_entropies,
)
from stepvar.training.video.clips import fixed_videos, video_batches
from stepvar.training.video.sizes import SIZE, build_tokenizer

logger = logging.getLogger(__name__)

_EVALUATION_VIDEOS = 8
_TRUNCATIONS = 3
_PIXELS_PER_CELL = 8
_MOVES = 0.2
"""How far a pixel's value, in -1..1, gets from that of the first frame where something moves."""

_SHEET_FRAMES = (0, 2, 4, 6, 8)


@dataclass(frozen=True)
class VideoTokenizerTraining(AutoencoderTraining):
    """Settings of a run.

    Attributes:
        motion_weight: Weight of the loss of what moves.
        frame_stride: Every how manieth frame the other losses look at.
        picture_share: First part of the budget that trains on single frames, a fifth of the work of videos:
            what is in a frame is learned there.
        pictures: Crops a step while they are single frames.
    """

    output: str = "runs/video/tokenizer"
    minutes: float = 20.0
    batch: int = 4
    crop: int = 56
    motion_weight: float = 1.0
    frame_stride: int = 3
    picture_share: float = 0.3
    pictures: int = 16


class VideoTokenizerTrainer(AutoencoderTrainer[VideoTokenizerTraining, InfinityStarVAE]):
    """Trains the video tokenizer."""

    def __init__(self, settings: VideoTokenizerTraining) -> None:
        super().__init__(settings, SIZE.canvas)
        self.motion = torch.zeros(())

    def build(self) -> InfinityStarVAE:
        if self.settings.start:
            return InfinityStarVAE.from_pretrained(self.settings.start, torch_dtype=torch.float32)
        return build_tokenizer()

    def phase(self) -> tuple[int, ...]:
        return (*super().phase(), 1 if self.progress < self.settings.picture_share else SIZE.frames)

    def batches(self, batch: int, side: int, seed: int) -> Iterator[Tensor]:
        _, frames = self.phase()
        count = self.settings.pictures if frames == 1 else batch
        return video_batches(count, side, seed, self.settings.workers, frames)

    def reconstruct(self, target: Tensor) -> Reconstruction:
        features = self.model.encode(target).float()
        steps = list(quantize(features, SIZE.schedule(target.shape[-1], features.shape[2])))
        latent = straight_through(steps, features)
        whole = len(target) - self.truncated(len(target))
        if whole < len(target):
            latent, target = _truncate(steps, features, latent, target, whole)
        video = self.model.decode(latent)
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
        return measure(self.average, fixed_videos(_EVALUATION_VIDEOS, seed=77).to(self.device))


def straight_through(steps: list[QuantizedStep], features: Tensor) -> Tensor:
    """The codes of all clips [B, C, T, H, W], with the gradient of the features."""
    codes = torch.cat([step.after for step in steps if step.scale.ends_clip], dim=2)
    return features + (codes - features).detach()


def _truncate(
    steps: list[QuantizedStep], features: Tensor, latent: Tensor, target: Tensor, whole: int
) -> tuple[Tensor, Tensor]:
    """Replaces the videos after the first `whole` by their first scales, and what they are compared with."""
    per_clip = len(SIZE.sides) + sum(SIZE.repetitions) - len(SIZE.repetitions)
    last = per_clip - 1 - int(torch.randint(1, _TRUNCATIONS + 1, ()))
    coarse = []
    for step in steps[last::per_clip]:
        own = features[whole:, :, step.scale.first_frame :][:, :, : step.scale.frames]
        shown = stretch(shrink(own, step.scale.bits, step.scale.grid), own.shape[1], own.shape[-3:])
        coarse.append(shown + (step.after[whole:] - shown).detach())
    latent = torch.cat((latent[:whole], torch.cat(coarse, dim=2)))
    rows, columns = (side * _PIXELS_PER_CELL for side in steps[last].scale.grid[1:])
    blurred = low_pass(target[whole:].flatten(1, 2), (rows, columns)).view_as(target[whole:])
    return latent, torch.cat((target[:whole], blurred))


def motion_loss(video: Tensor, target: Tensor) -> Tensor:
    """How well what moves is shown: mean absolute error of the pixels that change, and of their changes.

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
def measure(tokenizer: InfinityStarVAE, videos: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Measures a tokenizer on whole videos.

    Args:
        tokenizer: In evaluation mode.
        videos: uint8 [B, 3, F, side, side], at least four.

    Returns:
        The mean PSNR in dB, of the first frame and of the last, the entropy of the bits per step; and a
        sheet uint8 [rows, columns, 3]: under each of four videos' frames, those of its reconstruction.
    """
    target = to_signed(videos)
    steps = list(quantize(tokenizer.encode(target), SIZE.schedule()))
    codes = torch.cat([step.after for step in steps if step.scale.ends_clip], dim=2)
    decoded = tokenizer.decode(codes).clamp(-1.0, 1.0)
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


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trainer = VideoTokenizerTrainer(read_settings(VideoTokenizerTraining, __doc__, arguments))
    logger.info("tokenizer saved to %s", trainer.run())


if __name__ == "__main__":
    main()
