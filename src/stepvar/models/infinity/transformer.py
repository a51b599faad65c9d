"""Infinity's transformer: predicts the bits of a token map from coarser maps and text.

Source of the architecture: FoundationVision/Infinity, models/infinity.py and models/basic.py.
Shapes: B images, R rows (B conditional, then B unconditional), N tokens, C width, H heads,
c = C / H, T text tokens, E text channels, D bits per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from stepvar.generation.cache import Memory, attention
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.models.common.layers import (
    FeedForward,
    RMSNorm,
    apply_in_chunks,
    linear,
    modulated_norm,
    rotary_table_2d,
    rotate,
)
from stepvar.models.infinity.sizes import SizeTable

LARGEST_LOG_SCALE = math.log(100)
"""Cosine attention's learned log scale is clamped here."""


def feed_forward_width(width: int) -> int:
    """Hidden width of the feed-forward: 4 C rounded to a multiple of 256 (half to even)."""
    return round(4 * width / 256) * 256


class AttentivePool(nn.Module):
    """One learned query per head attends over the text: [E] features of a prompt become one [C].

    Args:
        text_channels: E.
        width: C.
        heads: Heads of the pool.
    """

    def __init__(self, text_channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, heads, width // heads))
        self.key_value = nn.Linear(text_channels, 2 * width, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.output = nn.Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """text [R, T, E] and its padding mask [R, 1, 1, T] -> [R, C]."""
        rows, heads, head_dim = text.shape[0], self.query.shape[1], self.query.shape[2]
        key, value = linear(self.key_value, text).chunk(2, dim=-1)
        value = value + self.value_bias
        key, value = (part.unflatten(-1, (heads, head_dim)).transpose(1, 2) for part in (key, value))
        query = self.query.transpose(0, 1)[None].expand(rows, -1, -1, -1).to(key.dtype)
        pooled = attention(query, key, value, mask=mask)
        return linear(self.output, pooled.flatten(1))


class SelfAttention(nn.Module):
    """Cosine attention with a learned scale per head and rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.output = nn.Linear(width, width)

    def constants(self) -> tuple[Tensor, Tensor]:
        """What does not depend on the input: bias [3 C] and scales of queries and keys [2, H, 1]."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        scale = self.log_scale.float().clamp_max(LARGEST_LOG_SCALE).exp().view(1, -1, 1)
        return bias, torch.cat([scale, torch.ones_like(scale)])

    def forward(
        self, hidden: Tensor, rotary: Tensor, memory: Memory, constants: tuple[Tensor, Tensor]
    ) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]; new keys and values go to `memory`."""
        bias, scales = constants
        qkv = functional.linear(hidden.to(self.qkv.weight.dtype), self.qkv.weight, bias)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))

        def turn(pair: Tensor, rotary: Tensor) -> Tensor:
            return rotate(functional.normalize(pair, dim=-1) * scales, rotary)

        # Queries and keys go through norm, scale and rotation together: half the calls.
        query, key = apply_in_chunks(turn, qkv[:, :, :2], rotary).unbind(2)
        heads_first = (part.transpose(1, 2) for part in (query, key, qkv[:, :, 2]))
        attended = memory.attend(*heads_first, scale=1.0)
        return self.output(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to the text. Keys and values do not depend on the scale: `project` makes them once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.output = nn.Linear(width, width)

    def project(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text [R, T, C] -> keys and values, each [R, H, T, c]."""
        key, value = linear(self.key_value, text).chunk(2, dim=-1)
        value = value + self.value_bias
        key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (key, value))
        return key.contiguous(), value.contiguous()

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]."""
        query = linear(self.query, hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = attention(query, key, value, mask=mask)
        return self.output(attended.transpose(1, 2).flatten(2))


class InfinityBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each a residual branch.

    The modulation of a generation, [R, 1, C] a piece, comes from `modulations` in the order
    (gate of self-attention, gate of feed-forward, their scales, their shifts), 1 already added to
    the scales.
    """

    def __init__(self, width: int, heads: int, hidden_width: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.self_attention = SelfAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width, eps=1e-6)
        self.cross_attention = CrossAttention(width, heads)
        self.feed_forward = FeedForward(width, hidden_width)

    def modulations(self, shared: Tensor) -> tuple[Tensor, ...]:
        """shared [R, 1, 6, C] -> six [R, 1, C] in float32."""
        gate1, gate2, scale1, scale2, shift1, shift2 = (self.modulation.float() + shared).unbind(2)
        return gate1, gate2, scale1 + 1.0, scale2 + 1.0, shift1, shift2

    def attend_self(
        self,
        hidden: Tensor,
        tokens: Tokens,
        modulation: Sequence[Tensor],
        memory: Memory,
        constants: tuple[Tensor, Tensor],
    ) -> Tensor:
        normed = modulated_norm(hidden, modulation[2], modulation[4])
        return modulation[0] * self.self_attention(normed, tokens.positions, memory, constants)

    def attend_text(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        norm = self.cross_norm
        normed = functional.layer_norm(
            hidden.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )
        return self.cross_attention(normed, key, value, mask)

    def feed(self, hidden: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        normed = modulated_norm(hidden, modulation[3], modulation[5])
        return modulation[1] * self.feed_forward(normed)


class InfinityTransformer(ModelMixin, ConfigMixin):
    """Infinity's transformer of any size.

    Args:
        depth, width, heads: Layers, C, H.
        bits: D, bits per token.
        text_channels: E, width of the text features.
        text_length: Rows of the learned unconditional text: the longest prompt, in tokens.
        pool_heads: Heads of the text pool.
        levels: Rows of the level embedding: the longest schedule.
        block_chunks: Chunks that the published checkpoint's keys group the blocks into.
        tokenizer_type: Which visual tokenizer the weights were trained with, e.g. "32".
        budgets: Pixel budgets the weights were trained for; None when unknown.
        grids: The one schedule of a small model, [rows, columns] a scale; None for the published
            table of aspect ratios and pixel budgets.
        pixels_per_token: Side in pixels of a token of the last scale.
        hidden_width: Hidden width of the feed-forward; None takes `feed_forward_width`.
    """

    # These stay in float32 whatever the rest is cast to, as in the official inference.
    _keep_in_fp32_modules = [  # noqa: RUF012
        "head",
        "head_modulation",
        "shared_modulation",
        "text_norm",
        "level_embedding",
        "start_embedding",
    ]
    _no_split_modules = ["InfinityBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        bits: int,
        text_channels: int = 2048,
        text_length: int = 512,
        pool_heads: int = 16,
        levels: int = 15,
        block_chunks: int = 1,
        tokenizer_type: str = "",
        budgets: Sequence[str] | None = None,
        grids: Sequence[Sequence[int]] | None = None,
        pixels_per_token: int = 16,
        hidden_width: int | None = None,
    ) -> None:
        super().__init__()
        self.unconditional_text = nn.Parameter(torch.zeros(text_length, text_channels))
        self.start_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = RMSNorm(text_channels)
        self.text_pool = AttentivePool(text_channels, width, pool_heads)
        self.text_projection = nn.Sequential(
            nn.Linear(text_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.level_embedding = nn.Embedding(levels, width)
        self.token_embedding = nn.Linear(bits, width)
        self.shared_modulation = nn.Linear(width, 6 * width)
        hidden_width = hidden_width or feed_forward_width(width)
        self.blocks = nn.ModuleList(InfinityBlock(width, heads, hidden_width) for _ in range(depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 2 * bits)

    @classmethod
    def published(cls, name: str, **overrides: Any) -> InfinityTransformer:
        """Builds a published size ("125M", "1B", "2B", "8B", "20B", ...) with empty weights.

        Raises:
            ValueError: When the size is unknown.
        """
        from stepvar.models.infinity.checkpoints import published_config

        return cls(**{**published_config(name), **overrides})

    @property
    def size_table(self) -> SizeTable:
        """The sizes this model draws."""
        if self.config.grids is None:
            return SizeTable.published()
        grids = [(int(rows), int(columns)) for rows, columns in self.config.grids]
        return SizeTable.single(grids, self.config.pixels_per_token)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number format of the matrix products and of the KV cache."""
        return self.blocks[0].self_attention.qkv.weight.dtype

    def rotary(self, scale: Scale, position_grid: tuple[int, int]) -> Tensor:
        """Rotary table of a scale, [1, N, c / 2] complex.

        A token lies at the row and column of the position grid that its own grid maps to, rounded
        half to even in float32, so that the same place has the same position at every scale.
        """
        device = self.level_embedding.weight.device
        axes = [
            (torch.arange(size, device=device).float() * (full / size)).round()
            for size, full in zip((scale.height, scale.width), position_grid, strict=True)
        ]
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        head_dim = self.config.width // self.config.heads
        return rotary_table_2d(rows.flatten(), columns.flatten(), head_dim)[None]

    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text features [..., E] -> (normalised [..., E], projected for cross-attention [..., C])."""
        normed = self.text_norm(text)
        first, activation, second = self.text_projection
        return normed, linear(second, activation(linear(first, normed)))

    def shared_modulations(self, pooled: Tensor) -> Tensor:
        """Pooled text [R, C] -> the modulation that all blocks share, [R, 1, 6, C], float32."""
        return (
            linear(self.shared_modulation, functional.silu(pooled.float()))
            .float()
            .view(-1, 1, 6, self.config.width)
        )

    def head_modulations(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled text [R, C] -> (1 + scale, shift) of the head, each [R, 1, C]."""
        modulation = linear(self.head_modulation, functional.silu(pooled.float())).float()
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
        return scale + 1.0, shift

    def embed_tokens(self, codes: Tensor, scale: Scale) -> Tensor:
        """Resized accumulated codes [R, N, D] -> hidden states [R, N, C] in float32."""
        return linear(self.token_embedding, codes).float() + self.level_embedding.weight[scale.index]

    def logits(self, hidden: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """hidden [R, N, C] -> [R, N, D, 2] in float32; index 0 is bit 0, index 1 is bit 1."""
        normed = modulated_norm(hidden, *modulation)
        return linear(self.head, normed).float().unflatten(-1, (-1, 2))

    def validate_schedule(self, schedule: ScaleSchedule) -> None:
        """Raises ValueError when a schedule has more scales than the level embedding has rows."""
        if len(schedule) > self.config.levels:
            raise ValueError(
                f"The schedule has {len(schedule)} scales, but this model has {self.config.levels} levels."
            )
