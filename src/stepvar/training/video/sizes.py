"""Sizes of the embedded video model, a small InfinityStar, and its transformer with fresh weights."""

from __future__ import annotations

from dataclasses import dataclass

from stepvar.models.infinitystar.schedules import PyramidSettings, VideoSchedule
from stepvar.models.infinitystar.training import init_weights
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.scenes.moving.scenes import CANVAS, FRAMES
from stepvar.scenes.text_encoder import TEXT_CHANNELS, TEXT_LENGTH
from stepvar.training.common.crops import PIXELS_PER_TOKEN

SEMANTIC_BITS, DETAIL_BITS = 8, 32
LATENTS_PER_SECOND = 2
RESOLUTION = "scenes"


@dataclass(frozen=True)
class VideoModelSize:
    """How large the frames and the transformer are.

    Attributes:
        canvas: Side of the frames in pixels.
        frames: Of a video.
        sides: Sides of the token maps of a clip, coarse to fine.
        semantic_scales: How many of them use the coarse code book.
        repetitions: Steps of each scale.
        depth, width, heads, key_heads, hidden_width: Of the transformer.
    """

    canvas: int = CANVAS
    frames: int = FRAMES
    sides: tuple[int, ...] = (1, 2, 4, 7, 10, 14)
    semantic_scales: int = 3
    repetitions: tuple[int, ...] = (2, 2, 1, 1, 1, 1)
    depth: int = 8
    width: int = 192
    heads: int = 3
    key_heads: int = 1
    hidden_width: int = 512

    @property
    def latent_frames(self) -> int:
        return 1 + (self.frames - 1) // 4

    @property
    def grids(self) -> list[tuple[int, int]]:
        return [(side, side) for side in self.sides]

    def schedule(self, side: int | None = None, latent_frames: int | None = None) -> VideoSchedule:
        """The steps of a video, or of its first latent frames; of a crop of `side` pixels, scaled down."""
        shrunk = [max(1, round(scale * (side or self.canvas) / self.canvas)) for scale in self.sides]
        settings = PyramidSettings(
            semantic_scales=self.semantic_scales,
            detail_minimum=shrunk[self.semantic_scales] ** 2,
            image_repetitions=self.repetitions,
            video_repetitions=self.repetitions,
            clip_frames=self.latent_frames - 1,
            semantic_bits=SEMANTIC_BITS,
            detail_bits=DETAIL_BITS,
            text_length=TEXT_LENGTH,
        )
        return settings.build([(scale, scale) for scale in shrunk], latent_frames or self.latent_frames)


SIZE = VideoModelSize()
"""1,113 tokens a video."""


def build_transformer(size: VideoModelSize = SIZE) -> InfinityStarTransformer:
    """The small InfinityStar with fresh weights."""
    transformer = InfinityStarTransformer(
        depth=size.depth,
        width=size.width,
        heads=size.heads,
        key_heads=size.key_heads,
        hidden_width=size.hidden_width,
        semantic_bits=SEMANTIC_BITS,
        detail_bits=DETAIL_BITS,
        text_channels=TEXT_CHANNELS,
        text_length=TEXT_LENGTH,
        resolution=RESOLUTION,
        grids=size.grids,
        semantic_scales=size.semantic_scales,
        image_repetitions=size.repetitions,
        video_repetitions=size.repetitions,
        clip_frames=size.latent_frames - 1,
        latents_per_second=LATENTS_PER_SECOND,
        most_clips=1,
        pixels_per_cell=PIXELS_PER_TOKEN,
    )
    init_weights(transformer)
    return transformer
