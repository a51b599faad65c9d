"""Transformer of Infinity: predicts the bits of a token map from coarser maps and text.

Source of the architecture: FoundationVision/Infinity, models/infinity.py and models/basic.py.
Shapes: B images, R rows (B conditional, then B unconditional), N tokens, C width, H heads,
c = C / H, T text tokens, E text channels, D bits per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.configuration_utils import register_to_config

# diffusers looks up the base class of a saved component on the module that the component is from.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import Tensor, nn

from stepvar.generation.attention import attention
from stepvar.generation.cache import Memory
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.models.common.attention import ProjectedAttention, rotary_of
from stepvar.models.common.base import BlockList, ConfiguredModel, MultiMethodModule, through_forward
from stepvar.models.common.layers import (
    BlockModulation,
    FeedForward,
    LayerNorm,
    Linear,
    RMSNorm,
    apply_in_chunks,
    embed_index,
    modulated_norm,
    rotary_table_2d,
    rotate,
    scale_and_shift,
)
from stepvar.models.infinity.published import feed_forward_width, published_config
from stepvar.models.infinity.sizes import SizeTable


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
        self.key_value = Linear(text_channels, 2 * width, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.output = Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """text [R, T, E] and its padding mask [R, 1, 1, T] -> [R, C]."""
        rows, heads, head_dim = text.shape[0], self.query.shape[1], self.query.shape[2]
        key, value = self.key_value(text).chunk(2, dim=-1)
        value = value + self.value_bias
        key, value = (part.unflatten(-1, (heads, head_dim)).transpose(1, 2) for part in (key, value))
        query = self.query.transpose(0, 1)[None].expand(rows, -1, -1, -1).to(key.dtype)
        pooled = attention(query, key, value, mask=mask)
        outputs: Tensor = self.output(pooled.flatten(1))
        return outputs


class SelfAttention(ProjectedAttention):
    """Cosine attention with a learned scale per head and rotary positions."""

    @through_forward
    def attend(
        self, hidden: Tensor, rotary: Tensor, memory: Memory, constants: tuple[Tensor, Tensor | None]
    ) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]; new keys and values go to `memory`."""
        bias, scales = constants
        qkv = self.project(hidden, bias)

        def scale_and_rotate(pair: Tensor, rotary: Tensor) -> Tensor:
            directions = functional.normalize(pair, dim=-1)
            return rotate(directions if scales is None else directions * scales, rotary)

        # Queries and keys go through norm, scale and rotation together: half the calls.
        pair = apply_in_chunks(scale_and_rotate, qkv[:, :, :2], rotary)
        query, key, value = (part.transpose(1, 2) for part in (pair[:, :, 0], pair[:, :, 1], qkv[:, :, 2]))
        return self.merge_heads(memory.attend(query, key, value, scale=self.softmax_scale))


class CrossAttention(MultiMethodModule):
    """Attention to the text. Keys and values do not depend on the scale: `project` makes them once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.output = Linear(width, width)

    @through_forward
    def project(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text [R, T, C] -> keys and values, each [R, H, T, c]."""
        key, value = self.key_value(text).chunk(2, dim=-1)
        value = value + self.value_bias
        key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (key, value))
        return key.contiguous(), value.contiguous()

    @through_forward
    def attend(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]."""
        query = self.query(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = attention(query, key, value, mask=mask)
        outputs: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return outputs


class InfinityBlock(MultiMethodModule):
    """Self-attention, cross-attention and feed-forward, each a residual branch.

    Branches take hidden states [R, N, C] in float32, and compute in the number format that they are given.
    """

    def __init__(self, width: int, heads: int, hidden_width: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.self_attention = SelfAttention(width, heads)
        self.cross_norm = LayerNorm(width, eps=1e-6)
        self.cross_attention = CrossAttention(width, heads)
        self.feed_forward = FeedForward(width, hidden_width)

    @through_forward
    def modulations(self, shared: Tensor) -> BlockModulation:
        """The modulation of a generation, from what all blocks share of it, [R, 1, 6, C]."""
        return BlockModulation.unpack(self.modulation.float() + shared)

    @through_forward
    def attend_self(
        self,
        hidden: Tensor,
        tokens: Tokens,
        modulation: BlockModulation,
        memory: Memory,
        constants: tuple[Tensor, Tensor | None],
        dtype: torch.dtype,
    ) -> Tensor:
        normed = modulated_norm(hidden, modulation.attention_scale, modulation.attention_shift).to(dtype)
        attended = self.self_attention.attend(normed, rotary_of(tokens), memory, constants)
        return modulation.attention_gate * attended

    @through_forward
    def attend_text(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return self.cross_attention.attend(self.cross_norm(hidden).to(key.dtype), key, value, mask)

    @through_forward
    def feed(self, hidden: Tensor, modulation: BlockModulation, dtype: torch.dtype) -> Tensor:
        normed = modulated_norm(hidden, modulation.feed_forward_scale, modulation.feed_forward_shift)
        outputs: Tensor = self.feed_forward(normed.to(dtype))
        return modulation.feed_forward_gate * outputs


class InfinityConfig(Mapping[str, Any]):
    """Arguments of `InfinityTransformer`, by name and as attributes."""

    depth: int
    width: int
    heads: int
    bits: int
    text_channels: int
    text_length: int
    pool_heads: int
    levels: int
    block_chunks: int
    tokenizer_type: str
    budgets: Sequence[str] | None
    grids: Sequence[Sequence[int]] | None
    pixels_per_token: int
    hidden_width: int | None


class InfinityTransformer(ConfiguredModel[InfinityConfig]):
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
    _repeated_blocks = ["InfinityBlock"]  # noqa: RUF012

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
            Linear(text_channels, width), nn.GELU(approximate="tanh"), Linear(width, width)
        )
        self.level_embedding = nn.Embedding(levels, width)
        self.token_embedding = Linear(bits, width)
        self.shared_modulation = Linear(width, 6 * width)
        hidden_width = hidden_width or feed_forward_width(width)
        self.blocks: BlockList[InfinityBlock] = BlockList(
            InfinityBlock(width, heads, hidden_width) for _ in range(depth)
        )
        self.head_modulation = Linear(width, 2 * width)
        self.head = Linear(width, 2 * bits)

    @classmethod
    def published(cls, name: str, **overrides: Any) -> InfinityTransformer:
        """Builds a published size ("125M", "1B", "2B", "8B", "20B", ...) with empty weights.

        Raises:
            ValueError: When the size is unknown.
        """
        return cls(**{**published_config(name), **overrides})

    @property
    def size_table(self) -> SizeTable:
        """The sizes this model draws."""
        if self.config.grids is None:
            return SizeTable.published()
        grids = [(int(rows), int(columns)) for rows, columns in self.config.grids]
        return SizeTable.single(grids, self.config.pixels_per_token)

    def rotary(
        self, scale: Scale, position_grid: tuple[int, int], device: torch.device | None = None
    ) -> Tensor:
        """Rotary table of a scale, [1, N, c / 2] complex.

        A token lies at the row and column of the position grid that its own grid maps to, rounded
        half to even in float32, so that the same place has the same position at every scale.
        """
        device = device or self.device
        axes = [
            (torch.arange(size, device=device).float() * (full / size)).round()
            for size, full in zip((scale.height, scale.width), position_grid, strict=True)
        ]
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        head_dim = self.config.width // self.config.heads
        return rotary_table_2d(rows.flatten(), columns.flatten(), head_dim)[None]

    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text features [..., E] -> (normalised [..., E], projected for cross-attention [..., C])."""
        normed = self.text_norm(text).to(self.compute_dtype)
        return normed, self.text_projection(normed)

    def shared_modulations(self, pooled: Tensor) -> Tensor:
        """Pooled text [R, C] -> the modulation that all blocks share, [R, 1, 6, C], float32."""
        shared: Tensor = self.shared_modulation(functional.silu(pooled.float())).float()
        return shared.view(-1, 1, 6, self.config.width)

    def head_modulations(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled text [R, C] -> (1 + scale, shift) of the head, each [R, 1, C]."""
        return scale_and_shift(self.head_modulation, pooled.float(), torch.float32)

    @through_forward
    def unconditional(self, tokens: int) -> Tensor:
        """Learned text features that stand for no prompt of that many tokens, [T, E]."""
        return self.unconditional_text[:tokens]

    @through_forward
    def embed_start(self, pooled: Tensor, scale: Scale) -> Tensor:
        """Pooled text [R, C] -> hidden states of the first scale, [R, 1, C] in float32."""
        start = pooled[:, None].float() + self.start_embedding.float()
        return start + embed_index(self.level_embedding, scale.index, pooled.device)

    def embed_tokens(self, codes: Tensor, scale: Scale) -> Tensor:
        """Resized accumulated codes [R, N, D] -> hidden states [R, N, C] in float32."""
        hidden: Tensor = self.token_embedding(
            codes.to(self.compute_dtype, memory_format=torch.contiguous_format)
        ).float()
        return hidden + embed_index(self.level_embedding, scale.index, codes.device)

    def logits(self, hidden: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """hidden [R, N, C] -> [R, N, D, 2] in float32; index 0 is bit 0, index 1 is bit 1."""
        values: Tensor = self.head(modulated_norm(hidden, *modulation)).float()
        return values.unflatten(-1, (-1, 2))

    def validate_schedule(self, schedule: ScaleSchedule) -> None:
        """Raises ValueError when a schedule has more scales than the level embedding has rows."""
        if len(schedule) > self.config.levels:
            raise ValueError(
                f"The schedule has {len(schedule)} scales, but this model has {self.config.levels} levels."
            )
