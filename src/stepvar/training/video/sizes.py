"""Sizes of the embedded video model: a small InfinityStar with its own small text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepvar.scenes.moving.scenes import CANVAS, FRAMES
from stepvar.scenes.text_encoder import TEXT_CHANNELS, TEXT_LENGTH
from stepvar.training.pictures.sizes import PIXELS_PER_TOKEN

if TYPE_CHECKING:
    from stepvar.models.infinitystar.schedules import VideoSchedule
    from stepvar.models.infinitystar.transformer import InfinityStarTransformer
    from stepvar.models.infinitystar.vae import InfinityStarVAE

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
        from stepvar.models.infinitystar.schedules import PyramidSettings

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
    from stepvar.models.infinitystar.training import init_weights
    from stepvar.models.infinitystar.transformer import InfinityStarTransformer

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


def build_tokenizer() -> InfinityStarVAE:
    """The video tokenizer with fresh weights: 8 x 8 pixels and four frames a cell, 32 bits."""
    from torch import nn

    from stepvar.models.infinitystar.convolutions import LatentNorm
    from stepvar.models.infinitystar.vae import InfinityStarVAE
    from stepvar.training.vae_trainer import keep_variance

    tokenizer = InfinityStarVAE(
        channels=(32, 64, 64, 64), latent_channels=DETAIL_BITS, blocks=1, patch=1, pixel_block=2
    )
    keep_variance(tokenizer)
    for module in tokenizer.modules():
        if isinstance(module, LatentNorm):
            # The latent's say in a norm begins small.
            module.conv_y.conv.weight.data.mul_(0.1)
            module.conv_b.conv.weight.data.mul_(0.1)
            nn.init.ones_(module.conv_y.conv.bias)
    for layer in (tokenizer.proj_down, tokenizer.proj_up):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return tokenizer
