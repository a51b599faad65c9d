"""Transformer of Switti: predicts the codes of a token map from the map's input and text.

Source of the architecture: yandex-research/switti, models/switti.py, basic_switti.py and rope.py.
Shapes: B images, R rows (B conditional, then B unconditional), N tokens, C width, H heads, c = C / H, T text
tokens, E text channels, V codes, D channels of a code.
"""

from __future__ import annotations

import math
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
from stepvar.models.common.base import BlockList, ConfiguredModel, MultiMethodModule, through_forward
from stepvar.models.common.layers import (
    BlockModulation,
    FeedForward,
    GatedFeedForward,
    Linear,
    RMSNorm,
    apply_in_chunks,
    embed_index,
    modulated_norm,
    rotary_table_2d,
    rotate,
    scale_and_shift,
)
from stepvar.models.switti.official import published_config

CROP = (512, 512, 0, 0)
"""Height, width, top and left of the crop that every picture is drawn as, whatever its size."""


def _normalised(inputs: Tensor) -> Tensor:
    """LayerNorm over the whole width, all heads together, in float32; its epsilon is no setting."""
    return functional.layer_norm(inputs.float(), inputs.shape[-1:], eps=1e-6)


class SelfAttention(nn.Module):
    """Attention with normalised queries and keys, and rotary positions where there is a table."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)

    def forward(self, hidden: Tensor, rotary: Tensor | None, memory: Memory) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]; new keys and values go to `memory`."""
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        directions = torch.stack([_normalised(query), _normalised(key)], dim=2)
        directions = directions.unflatten(-1, (self.heads, -1))
        if rotary is not None:
            directions = apply_in_chunks(rotate, directions, rotary)
        query, key = (part.transpose(1, 2) for part in directions.to(value.dtype).unbind(2))
        value = value.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = memory.attend(query, key, value, scale=None)
        outputs: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return outputs


class CrossAttention(MultiMethodModule):
    """Attention to the text. Keys and values do not depend on the scale: `project` makes them once."""

    def __init__(self, width: int, heads: int, text_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(text_channels, 2 * width)
        self.output = Linear(width, width)

    @through_forward
    def project(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text [R, T, E] -> keys and values, each [R, H, T, c]."""
        key, value = self.key_value(text).chunk(2, dim=-1)
        key = _normalised(key).to(value.dtype)
        key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (key, value))
        return key.contiguous(), value.contiguous()

    @through_forward
    def attend(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]."""
        query = _normalised(self.query(hidden)).to(key.dtype)
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = attention(query, key, value, mask=mask)
        outputs: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return outputs


class SwittiBlock(MultiMethodModule):
    """Self-attention, cross-attention and feed-forward, each a residual branch between two norms.

    Branches take hidden states [R, N, C] in float32, and compute in the number format that they are given.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        text_channels: int,
        feed_forward: nn.Module,
        crop_condition: bool,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.modulation = Linear(width, 6 * width)
        self.crop_scale = nn.Parameter(torch.zeros(1, width)) if crop_condition else None
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads, text_channels)
        self.feed_forward = feed_forward
        self.self_input_norm = RMSNorm(width, norm_eps)
        self.self_output_norm = RMSNorm(width, norm_eps)
        self.cross_input_norm = RMSNorm(width, norm_eps)
        self.cross_output_norm = RMSNorm(width, norm_eps)
        self.feed_input_norm = RMSNorm(width, norm_eps)
        self.feed_output_norm = RMSNorm(width, norm_eps)
        self.text_norm = RMSNorm(text_channels, norm_eps)

    @through_forward
    def modulations(self, condition: Tensor, crop: Tensor | None, dtype: torch.dtype) -> BlockModulation:
        """The modulation of a generation, from its condition [R, C] and the crop's [1, C]."""
        if crop is not None and self.crop_scale is not None:
            condition = condition + self.crop_scale.float() * crop
        values = self.modulation(functional.silu(condition).to(dtype)).float().unflatten(-1, (1, 6, -1))
        return BlockModulation.unpack(values)

    @through_forward
    def project_text(self, text: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """text [R, T, E] -> keys and values of cross-attention, each [R, H, T, c]."""
        return self.cross_attention.project(self.text_norm(text).to(dtype))

    @through_forward
    def attend_self(
        self,
        hidden: Tensor,
        tokens: Tokens,
        modulation: BlockModulation,
        memory: Memory,
        dtype: torch.dtype,
    ) -> Tensor:
        normed = self.self_input_norm(hidden)
        normed = torch.addcmul(modulation.attention_shift, normed, modulation.attention_scale)
        attended = self.self_attention(normed.to(dtype), tokens.positions, memory)
        return modulation.attention_gate * self.self_output_norm(attended)

    @through_forward
    def attend_text(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.cross_input_norm(hidden).to(key.dtype)
        outputs: Tensor = self.cross_output_norm(self.cross_attention.attend(normed, key, value, mask))
        return outputs

    @through_forward
    def feed(self, hidden: Tensor, modulation: BlockModulation, dtype: torch.dtype) -> Tensor:
        normed = self.feed_input_norm(hidden)
        normed = torch.addcmul(modulation.feed_forward_shift, normed, modulation.feed_forward_scale)
        return modulation.feed_forward_gate * self.feed_output_norm(self.feed_forward(normed.to(dtype)))


class SwittiConfig(Mapping[str, Any]):
    """Arguments of `SwittiTransformer`, by name and as attributes."""

    depth: int
    width: int
    heads: int
    sides: Sequence[int]
    codes: int
    channels: int
    causal: bool
    text_channels: int
    pooled_channels: int
    text_length: int
    feed_forward_width: int | None
    gated_feed_forward: bool
    crop_condition: bool
    rotary: bool
    rotary_theta: float
    rotary_extent: float
    norm_eps: float
    pixels_per_token: int


class SwittiTransformer(ConfiguredModel[SwittiConfig]):
    """Switti's transformer of any size.

    Args:
        depth, width, heads: Layers, C, H.
        sides: Side of every scale's square token map, coarse to fine.
        codes, channels: V, D.
        causal: Whether a scale attends to earlier scales too; by default to itself alone.
        text_channels: E, of both text encoders together.
        pooled_channels: Channels of the pooled text.
        text_length: Most tokens of a prompt.
        feed_forward_width: Hidden width of the feed-forward; None is 8/3 C, or 4 C without a gate.
        gated_feed_forward: SwiGLU, as in every published model, or GELU.
        crop_condition: Whether the crop of a picture modulates the blocks.
        rotary: Rotary positions, as in every published model, or a learned embedding of every place.
        rotary_theta: Base of the rotary frequencies.
        rotary_extent: Every scale spans positions 0 to this.
        norm_eps: Of every norm but those of queries and keys.
        pixels_per_token: Side in pixels of a token of the last scale.
    """

    # These stay in float32 whatever the rest is cast to: they add up in the residual stream.
    _keep_in_fp32_modules = ["start_embedding", "position_embedding", "level_embedding"]  # noqa: RUF012
    _no_split_modules = ["SwittiBlock"]  # noqa: RUF012
    _repeated_blocks = ["SwittiBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        sides: Sequence[int],
        codes: int = 4096,
        channels: int = 32,
        causal: bool = False,
        text_channels: int = 2048,
        pooled_channels: int = 1280,
        text_length: int = 77,
        feed_forward_width: int | None = None,
        gated_feed_forward: bool = True,
        crop_condition: bool = True,
        rotary: bool = True,
        rotary_theta: float = 10000.0,
        rotary_extent: float = 128.0,
        norm_eps: float = 1e-6,
        pixels_per_token: int = 16,
    ) -> None:
        super().__init__()
        tokens = [side**2 for side in sides]
        self.start_embedding = nn.Parameter(torch.zeros(1, tokens[0], width))
        self.position_embedding = None if rotary else nn.Parameter(torch.zeros(1, sum(tokens), width))
        self.level_embedding = nn.Embedding(len(tokens), width)
        self.token_embedding = Linear(channels, width)
        self.text_pool = Linear(pooled_channels, width)
        if crop_condition:
            self.crop_frequencies = nn.Parameter(torch.zeros(width // 8), requires_grad=False)
            self.crop_projection = Linear(width, width)
        hidden = self.hidden_width
        self.blocks: BlockList[SwittiBlock] = BlockList(
            SwittiBlock(
                width,
                heads,
                text_channels,
                GatedFeedForward(width, hidden) if gated_feed_forward else FeedForward(width, hidden),
                crop_condition,
                norm_eps,
            )
            for _ in range(depth)
        )
        self.head_modulation = Linear(width, 2 * width)
        self.head = Linear(width, codes)

    @classmethod
    def published(cls, name: str, **overrides: Any) -> SwittiTransformer:
        """Builds a published model ("512", "512-AR", "1024" or "1024-AR") with empty weights.

        Raises:
            ValueError: When there is no such model.
        """
        return cls(**{**published_config(name), **overrides})

    @property
    def hidden_width(self) -> int:
        """Hidden width of the feed-forward."""
        config = self.config
        usual = int(config.width * (8 / 3)) if config.gated_feed_forward else 4 * config.width
        return config.feed_forward_width or usual

    @property
    def schedule(self) -> ScaleSchedule:
        """The one schedule that the weights know."""
        return ScaleSchedule.from_grids([(side, side) for side in self.config.sides])

    def rotary(self, scale: Scale, device: torch.device | None = None) -> Tensor | None:
        """Rotary table of a scale, [1, N, c / 2] complex: first the angles that turn with the column."""
        config = self.config
        if not config.rotary:
            return None
        index = torch.arange(scale.tokens, device=device or self.device)
        rows, columns = index // scale.width, index % scale.width
        stretch = config.rotary_extent / max(scale.width - 1, 1)
        head_dim = config.width // config.heads
        return rotary_table_2d(columns, rows, head_dim, config.rotary_theta, stretch)[None]

    def embed_condition(self, pooled: Tensor) -> Tensor:
        """Pooled text [R, P] -> the condition [R, C] in float32, which also is the first scale's input."""
        condition: Tensor = self.text_pool(pooled.to(self.compute_dtype))
        return condition.float()

    def embed_crop(self) -> Tensor | None:
        """The condition of the one crop, [1, C] in float32; None for a model without.

        Phases reach thousands of radians, so their rounding is part of the model: they are computed in the
        number format of the weights, as in the official code.
        """
        if not self.config.crop_condition:
            return None
        condition: Tensor = self.crop_projection(self.crop_features().to(self.compute_dtype))
        return condition.float()

    @through_forward
    def crop_features(self) -> Tensor:
        """Gaussian Fourier features of the crop, [1, C]."""
        weight = self.crop_frequencies
        sides = torch.tensor(CROP, dtype=weight.dtype, device=weight.device)
        phases = sides[:, None] * weight * 2 * math.pi
        return torch.cat([phases.sin(), phases.cos()], dim=1).view(1, -1)

    def _positions(self, scale: Scale, device: torch.device) -> Tensor:
        """Embeddings of a scale's level, and of its positions if any, [1, 1 or N, C] in float32."""
        level = embed_index(self.level_embedding, scale.index, device)[None, None]
        if self.position_embedding is None:
            return level
        start = sum(side**2 for side in self.config.sides[: scale.index])
        return level + self.position_embedding[:, start : start + scale.tokens].float()

    @through_forward
    def embed_start(self, condition: Tensor, scale: Scale) -> Tensor:
        """Condition [R, C] -> hidden states of the first scale, [R, N, C] in float32."""
        return condition[:, None] + self.start_embedding.float() + self._positions(scale, condition.device)

    @through_forward
    def embed_tokens(self, codes: Tensor, scale: Scale) -> Tensor:
        """Resized accumulated codes [R, N, D] -> hidden states [R, N, C] in float32."""
        hidden: Tensor = self.token_embedding(
            codes.to(self.compute_dtype, memory_format=torch.contiguous_format)
        ).float()
        return hidden + self._positions(scale, codes.device)

    def head_modulations(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Condition [R, C] -> (1 + scale, shift) of the head, each [R, 1, C]."""
        return scale_and_shift(self.head_modulation, condition, self.compute_dtype)

    def logits(self, hidden: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """hidden [R, N, C] -> [R, N, V] in float32."""
        normed = modulated_norm(hidden, *modulation, self.config.norm_eps).to(self.compute_dtype)
        values: Tensor = self.head(normed)
        return values.float()
