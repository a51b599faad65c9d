"""Conditioning of videos: a picture or a video to begin with, or the clip before.

Source: `video_encode` of FoundationVision/InfinityStar (MIT), infinity/schedules/infinity_elegant.py, and
tools/infer_*.py. The official code draws from the posterior with an unseeded generator; here it is seeded.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from stepvar.media.pictures import Picture, read_frames, read_picture
from stepvar.media.video import Video, read_video
from stepvar.models.infinitystar.frames import fit, spread_frames, to_pixels
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.quantizer import quantize
from stepvar.models.infinitystar.schedules import VideoSchedule
from stepvar.models.infinitystar.session import KnownClips
from stepvar.models.infinitystar.vae import InfinityStarVAE

logger = logging.getLogger(__name__)

_TIME_TOLERANCE = 2e-3
"""In seconds: containers round times, some of them to milliseconds."""

VideoInput = Sequence[Image.Image] | Video | str | os.PathLike[str]


@dataclass(frozen=True)
class ConditioningFrames:
    """Pictures that a video begins with, of their own size.

    Attributes:
        pictures: One, or the frames of a video.
        frames_per_second: Of the video.
        times: As of a `Video`.
    """

    pictures: Sequence[Image.Image]
    frames_per_second: float = 0.0
    times: Sequence[float] | None = None

    @property
    def is_video(self) -> bool:
        return self.frames_per_second > 0

    @property
    def ratio(self) -> float:
        """Height / width."""
        width, height = self.pictures[0].size
        return height / width

    def pixels(self, height: int, width: int) -> Tensor:
        """The pictures at a size, [1, 3, F, H, W] in -1..1; says so when much had to be cut off."""
        fitted = [fit(picture, height, width) for picture in self.pictures]
        if any(cut for _, cut in fitted):
            own = self.pictures[0].size
            logger.warning(
                "The %s is %dx%d pixels; its middle was cut out for %dx%d.",
                "video" if self.is_video else "picture", *own, width, height,
            )  # fmt: skip
        return to_pixels([picture for picture, _ in fitted])

    def spread(self, seconds: float, count: int, from_end: bool = False) -> ConditioningFrames:
        """`count` frames that stand for the first seconds, or the last ones."""
        video, rate = Video(self.pictures, self.frames_per_second, self.times), self.frames_per_second
        if not video.is_even:
            # Moments as close as the frames that are wanted: a mean rate may be far coarser.
            rate = max(rate, (count - 1) / seconds)
        total = math.floor(video.duration * rate + 1e-3)
        if video.duration >= seconds - _TIME_TOLERANCE:
            # Long enough by its times, whatever a mean rate makes of them.
            total = max(total, math.ceil(seconds * rate))
        places = spread_frames(total, rate, seconds, count)
        shift = total - 1 - places[-1] if from_end else 0
        shown = [video.frame_at((place + shift) / rate) for place in places]
        return ConditioningFrames([self.pictures[index] for index in shown], rate)


def read_image(image: Picture) -> ConditioningFrames:
    """A picture to begin with.

    Raises:
        ValueError: When it cannot be read.
    """
    return ConditioningFrames([read_picture(image)])


def read_video_frames(
    video: VideoInput, frames_per_second: float, seconds: float, from_end: bool
) -> ConditioningFrames:
    """A video to go on from.

    Args:
        video: A file, a `Video`, or pictures that follow each other.
        frames_per_second: Of pictures without a file.
        seconds: How much of a file is needed, and read.
        from_end: The last seconds are needed, not the first ones.

    Raises:
        ValueError: When it cannot be read, or is empty.
    """
    if isinstance(video, (str, os.PathLike)):
        video = read_video(video, seconds, from_end)
    if not isinstance(video, Video):
        video = Video(list(video), frames_per_second)
    return ConditioningFrames(read_frames(video.frames), video.frames_per_second, video.times)


def encode_known_clips(
    tokenizer: InfinityStarVAE,
    pixels: Tensor,
    schedule: VideoSchedule,
    generator: torch.Generator | None,
    device: torch.device,
) -> KnownClips:
    """Encodes what a video begins with, step by step, as drawing it would have summed it up.

    Args:
        pixels: [1, 3, F, H, W] in -1..1.
        schedule: The schedule of exactly these frames.
        generator: Draws from the posterior; None takes its mean.
    """
    latent = encode_latent(tokenizer, pixels, generator, device)
    last = [step for step in quantize(latent, schedule) if step.scale.ends_clip]
    return KnownClips(tuple(step.before for step in last), tuple(step.after for step in last))


def encode_latent(
    tokenizer: InfinityStarVAE,
    pixels: Tensor,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Latents [1, C, T, H, W] of pixels [1, 3, F, H, W], drawn from the posterior or its mean."""
    noise = None
    if generator is not None:
        cell = tokenizer.pixels_per_cell
        frames = 1 + (pixels.shape[2] - 1) // 4
        shape = (1, tokenizer.cell_channels, frames, pixels.shape[3] // cell, pixels.shape[4] // cell)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
    return tokenizer.encode(pixels.to(device), noise)


def start_continuation(
    tokenizer: InfinityStarVAE, pixels: Tensor, generator: torch.Generator | None, device: torch.device
) -> Continuation:
    """What an interactive continuation goes on from: the latents of a whole clip and its first frame."""
    latent = encode_latent(tokenizer, pixels, generator, device)
    return Continuation(latent, latent[:, :, :1])
