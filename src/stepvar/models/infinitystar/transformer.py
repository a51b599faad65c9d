"""Transformer of InfinityStar: predicts the bits of space-time token maps after a text prefix.

Source of the architecture: FoundationVision/InfinityStar (MIT), infinity/models/infinity.py and basic.py.
Shapes: R rows (conditional, then unconditional), N tokens, C width, H heads, H' heads of keys and values,
c channels of a head, E text channels, D bits per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config

# diffusers looks up the base class of a saved component on the module that the component is from.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import Tensor, nn

from stepvar.generation.cache import Memory
from stepvar.models.common.base import BlockList, ConfiguredModel, MultiMethodModule, through_forward
from stepvar.models.common.layers import GatedFeedForward, Linear, RMSNorm, apply_in_chunks, rotate
from stepvar.models.infinitystar.official import published_config
from stepvar.models.infinitystar.rotary import RotaryTables
from stepvar.models.infinitystar.schedules import PIXELS_PER_CELL, PyramidSettings
from stepvar.models.infinitystar.sizes import VideoSizes

TOKENS_AT_ONCE = 8192
"""Tokens that one matrix product works on: keeps the wide feed-forward and float32 copies small."""


class SelfAttention(nn.Module):
    """Grouped-query attention with normalised, rotated queries and keys; no biases, no mask."""

    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, key_heads * self.head_dim, bias=False)
        self.value = Linear(width, key_heads * self.head_dim, bias=False)
        self.output = Linear(width, width, bias=False)
        self.query_norm = RMSNorm(self.head_dim)
        self.key_norm = RMSNorm(self.head_dim)

    def project(self, normed: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """normed [R, N, C] -> queries [R, N, H, c], keys and values [R, N, H', c]."""
        query, key, value = (
            layer(normed).unflatten(-1, (-1, self.head_dim)) for layer in (self.query, self.key, self.value)
        )
        query = apply_in_chunks(lambda part, rotary: rotate(self.query_norm(part), rotary), query, rotary)
        key = apply_in_chunks(lambda part, rotary: rotate(self.key_norm(part), rotary), key, rotary)
        return query, key, value


class InfinityStarBlock(MultiMethodModule):
    """Self-attention and feed-forward, each a residual branch behind a norm."""

    def __init__(self, width: int, heads: int, key_heads: int, hidden_width: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = SelfAttention(width, heads, key_heads)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = GatedFeedForward(width, hidden_width)

    @through_forward
    def attend(self, hidden: Tensor, rotary: Tensor, memory: Memory, dtype: torch.dtype) -> Tensor:
        """hidden [R, N, C] in float32, rotary [R or 1, N, c / 2] -> residual branch [R, N, C]."""

        def project(part: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
            return self.attention.project(self.attention_norm(part).to(dtype), rotary[:, start:stop])

        query, key, value = (part.transpose(1, 2) for part in _in_chunks(project, hidden))
        attended = memory.attend(query, key, value, scale=None).transpose(1, 2).flatten(2)
        return _in_chunks(lambda part, *_: (self.attention.output(part),), attended)[0]

    @through_forward
    def feed(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """hidden [R, N, C] in float32 -> residual branch [R, N, C]."""

        def run(part: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
            return (self.feed_forward(self.feed_forward_norm(part).to(dtype)),)

        return _in_chunks(run, hidden)[0]


def _in_chunks(function: Callable[..., tuple[Tensor, ...]], hidden: Tensor) -> tuple[Tensor, ...]:
    """Applies a function of single tokens to [R, N, C], a few thousand tokens at a time.

    Args:
        function: Called with (tokens [R, n, C], start, stop); returns tensors [R, n, ...].
    """
    count = hidden.shape[1]
    step = max(TOKENS_AT_ONCE // hidden.shape[0], 1)
    if count <= step or hidden.requires_grad:
        # Training keeps all of it anyway.
        return function(hidden, 0, count)
    results: tuple[Tensor, ...] = ()
    for start in range(0, count, step):
        stop = min(start + step, count)
        parts = function(hidden[:, start:stop], start, stop)
        if not start:
            results = tuple(part.new_empty(part.shape[0], count, *part.shape[2:]) for part in parts)
        for result, part in zip(results, parts, strict=True):
            result[:, start:stop] = part
    return results


class InfinityStarConfig(Mapping[str, Any]):
    """Arguments of `InfinityStarTransformer`, by name and as attributes."""

    depth: int
    width: int
    heads: int
    key_heads: int
    hidden_width: int
    semantic_bits: int
    detail_bits: int
    text_channels: int
    text_length: int
    block_chunks: int
    resolution: str
    grids: Sequence[Sequence[int]] | None
    semantic_scales: int | None
    image_repetitions: Sequence[int] | None
    video_repetitions: Sequence[int] | None
    clip_frames: int
    latents_per_second: int
    most_clips: int
    pixels_per_cell: int


class InfinityStarTransformer(ConfiguredModel[InfinityStarConfig]):
    """InfinityStar's transformer of any size.

    Args:
        depth, width, heads, key_heads: Layers, C, H, H'.
        hidden_width: Width of the feed-forward.
        semantic_bits, detail_bits: Bits a token predicts at coarse and at fine scales; the latter is also
            the number of latent channels.
        text_channels: E, width of the text features.
        text_length: Rows of the learned unconditional text: the longest prompt, in tokens.
        block_chunks: Chunks that the published checkpoint's keys group the blocks into.
        resolution: What the weights were trained for: "480p", "720p" or "interact".
        grids: The one pyramid of a small model, [rows, columns] a scale; None for the published table of
            aspect ratios.
        semantic_scales: Scales of `grids` that use the coarse code book.
        image_repetitions, video_repetitions: Steps of each scale of `grids`.
        clip_frames: Latent frames of a clip after the first.
        latents_per_second: Latent frames of a second of video.
        most_clips: Clips after the first frame that a small model draws at most.
        pixels_per_cell: Side in pixels of a latent cell.
    """

    # These stay in float32 whatever the rest is cast to, as in the official inference.
    _keep_in_fp32_modules = [  # noqa: RUF012
        "unconditional_text",
        "text_projection",
        "token_embedding",
        "output_norm",
        "semantic_head",
        "detail_head",
    ]
    _no_split_modules = ["InfinityStarBlock"]  # noqa: RUF012
    _repeated_blocks = ["InfinityStarBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        key_heads: int,
        hidden_width: int,
        semantic_bits: int = 16,
        detail_bits: int = 64,
        text_channels: int = 2048,
        text_length: int = 512,
        block_chunks: int = 1,
        resolution: str = "480p",
        grids: Sequence[Sequence[int]] | None = None,
        semantic_scales: int | None = None,
        image_repetitions: Sequence[int] | None = None,
        video_repetitions: Sequence[int] | None = None,
        clip_frames: int = 20,
        latents_per_second: int = 4,
        most_clips: int = 2,
        pixels_per_cell: int = PIXELS_PER_CELL,
    ) -> None:
        super().__init__()
        if width % heads or heads % key_heads or (width // heads) % 8:
            raise ValueError(
                f"{heads} heads and {key_heads} key heads do not divide a width of {width} into heads "
                "of a multiple of 8 channels."
            )
        self.unconditional_text = nn.Embedding(text_length, text_channels)
        self.text_projection = Linear(text_channels, width)
        self.token_embedding = Linear(detail_bits, width)
        self.blocks: BlockList[InfinityStarBlock] = BlockList(
            InfinityStarBlock(width, heads, key_heads, hidden_width) for _ in range(depth)
        )
        self.output_norm = RMSNorm(width)
        self.semantic_head = Linear(width, 2 * semantic_bits)
        self.detail_head = Linear(width, 2 * detail_bits)

    @classmethod
    def published(cls, resolution: str = "480p", **overrides: Any) -> InfinityStarTransformer:
        """Builds the published 8B transformer with empty weights.

        Raises:
            ValueError: When the resolution is unknown.
        """
        return cls(**{**published_config(resolution), **overrides})

    @property
    def sizes(self) -> VideoSizes:
        """The sizes and lengths that this model draws."""
        config = self.config
        if config.grids is None:
            return VideoSizes.published(config.resolution)
        grids = [(int(rows), int(columns)) for rows, columns in config.grids]
        settings = PyramidSettings(
            semantic_scales=config.semantic_scales,
            detail_minimum=None,
            image_repetitions=tuple(config.image_repetitions or ()),
            video_repetitions=tuple(config.video_repetitions or ()),
            clip_frames=config.clip_frames,
            semantic_bits=config.semantic_bits,
            detail_bits=config.detail_bits,
            text_length=config.text_length,
        )
        height, width = grids[-1]
        return VideoSizes(
            {height / width: tuple(grids)},
            settings,
            longest=config.most_clips * config.clip_frames / config.latents_per_second,
            latents_per_second=config.latents_per_second,
            name=config.resolution,
            pixels_per_cell=config.pixels_per_cell,
        )

    @property
    def size_table(self) -> VideoSizes:
        """The same, under the name that every transformer has for it."""
        return self.sizes

    @property
    def head_dim(self) -> int:
        return self.config.width // self.config.heads

    def rotary(self, position_grid: tuple[int, int], device: torch.device) -> RotaryTables:
        """Rotary tables for the tokens of a schedule."""
        return RotaryTables(self.head_dim, position_grid, device)

    def unconditional(self, tokens: int, device: torch.device | None = None) -> Tensor:
        """Learned text features that stand for no prompt of that many tokens, [L, E] in float32.

        Args:
            device: Where the model runs; by default where its weights are.
        """
        text: Tensor = self.unconditional_text(torch.arange(tokens, device=device or self.device))
        return text.float()

    def embed_text(self, text: Tensor) -> Tensor:
        """Text features [..., E] -> prefix tokens [..., C] in float32."""
        hidden: Tensor = self.text_projection(text.float())
        return hidden.float()

    def embed_tokens(self, codes: Tensor) -> Tensor:
        """Resized codes [B, D, t, h, w] -> hidden states [B, N, C] in float32; time slowest."""
        hidden: Tensor = self.token_embedding(codes.flatten(2).transpose(1, 2).float())
        return hidden.float()

    def logits(self, hidden: Tensor, bits: int) -> Tensor:
        """hidden [R, N, C] -> [R, N, bits, 2] in float32; index 0 is bit 0, index 1 is bit 1."""
        head = self.semantic_head if bits == self.config.semantic_bits else self.detail_head
        values: Tensor = head(self.output_norm(hidden))
        return values.float().unflatten(-1, (-1, 2))
