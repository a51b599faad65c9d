"""Results of a call: decoded videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from stepvar.generation.loop import Generation
from stepvar.generation.report import Report
from stepvar.models.infinitystar.frames import collect
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.models.output import describe_media, describe_run, require_finite_pixels


@dataclass(repr=False)
class VideoOutput(BaseOutput):
    """Result of a pipeline that draws videos.

    Attributes:
        frames: Per video its PIL pictures, or an array [B, F, H, W, 3] / tensor [B, F, 3, H, W] in 0..1, or
            the accumulated codes [B, C, T, H, W], as was asked for.
        frames_per_second: How fast the frames follow each other.
        report: What ran, what it kept, how long it took.
        continuations: Per video what the next one goes on from; only of interactive continuation.
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor
    frames_per_second: int
    report: Report
    continuations: list[Continuation]

    @property
    def images(self) -> list[Any]:
        """First frame of each video: the picture itself, where a picture was asked for."""
        return [video[0] for video in self.frames]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({describe_media(self.frames)}, {describe_run(self.report)})"


@dataclass(frozen=True)
class DrawnVideo:
    """One video of a call.

    Attributes:
        frames: Bytes [F, H, W, 3], or its codes [1, C, T, H, W] where they were asked for.
        generation: What the loop left.
        after: What the next clip goes on from; None but for interactive continuation.
    """

    frames: Tensor
    generation: Generation
    after: Continuation | None


@dataclass(frozen=True)
class Decoding:
    """How codes become frames.

    Attributes:
        chunk: Latent frames decoded at a time.
        tile: Side of the tiles decoded at a time, in latent cells; None decodes whole frames.

    Raises:
        ValueError: When chunk or tile are too small.
    """

    chunk: int
    tile: int | None

    def __post_init__(self) -> None:
        if self.chunk < 1 or (self.tile is not None and self.tile < 2):
            raise ValueError("decode_chunk must be 1 latent frame or more, decode_tile 2 cells or more.")


def decode_frames(
    tokenizer: InfinityStarVAE, latent: Tensor, before: Continuation | None, decoding: Decoding
) -> Tensor:
    """Frames [F, H, W, 3] of a video as bytes.

    Args:
        latent: [1, C, T, H, W].
        before: The clip that it goes on from, whose frames are decoded with it and not shown.
    """
    whole = latent if before is None else before.joined(latent)
    if decoding.tile is None:
        chunks = tokenizer.decode_stream(whole, decoding.chunk)
    else:
        chunks = tokenizer.decode_tiled(whole, decoding.tile, decoding.tile // 4, decoding.chunk)
    shown = collect(require_finite_pixels(chunk) for chunk in chunks)
    return shown if before is None else shown[-4 * latent.shape[2] :]


def join_videos(videos: Sequence[Tensor], output_type: str) -> list[list[Image.Image]] | np.ndarray | Tensor:
    """Videos of one size in the form that was asked for.

    Args:
        videos: Each as bytes [F, H, W, 3], or as codes [1, C, T, H, W] for "latent".
        output_type: "pil", "np", "pt" or "latent".
    """
    if output_type == "latent":
        return torch.cat(list(videos))
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in video.numpy()] for video in videos]
    stacked = torch.stack(list(videos)).float() / 255.0
    return stacked.permute(0, 1, 4, 2, 3) if output_type == "pt" else stacked.numpy()
