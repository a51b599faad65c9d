"""Switti's transformer: predicts the codes of a token map from the map's input and text.

Source of the architecture: yandex-research/switti, models/switti.py, basic_switti.py and rope.py.
Shapes: B images, R rows (B conditional, then B unconditional), N tokens, C width, H heads, c = C / H, T text
tokens, E text channels, V codes, D channels of a code.
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
    GatedFeedForward,
    RMSNorm,
    apply_in_chunks,
    linear,
    modulated_norm,
    rotary_table_2d,
    rotate,
)

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
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden: Tensor, rotary: Tensor | None, memory: Memory) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]; new keys and values go to `memory`."""
        query, key, value = linear(self.qkv, hidden).chunk(3, dim=-1)
        directions = torch.stack([_normalised(query), _normalised(key)], dim=2)
        directions = directions.unflatten(-1, (self.heads, -1))
        if rotary is not None:
            directions = apply_in_chunks(rotate, directions, rotary)
        query, key = directions.to(value.dtype).unbind(2)
        heads_first = (part.transpose(1, 2) for part in (query, key, value.unflatten(-1, (self.heads, -1))))
        attended = memory.attend(*heads_first, scale=None)
        return self.output(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to the text. Keys and values do not depend on the scale: `project` makes them once."""

    def __init__(self, width: int, heads: int, text_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(text_channels, 2 * width)
        self.output = nn.Linear(width, width)

    def project(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text [R, T, E] -> keys and values, each [R, H, T, c]."""
        key, value = linear(self.key_value, text).chunk(2, dim=-1)
        key = _normalised(key).to(value.dtype)
        key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (key, value))
        return key.contiguous(), value.contiguous()

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]."""
        query = _normalised(linear(self.query, hidden)).to(key.dtype)
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = attention(query, key, value, mask=mask)
        return self.output(attended.transpose(1, 2).flatten(2))


class SwittiBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each a residual branch between two norms.

    The modulation of a generation, [R, 1, C] a piece, comes from `modulations` in the order
    (gate of self-attention, gate of feed-forward, their scales, their shifts), 1 already added to
    the scales.
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
        self.modulation = nn.Linear(width, 6 * width)
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

    def modulations(self, condition: Tensor, crop: Tensor | None) -> tuple[Tensor, ...]:
        """Condition [R, C] and crop condition [1, C] -> six [R, 1, C] in float32."""
        if crop is not None and self.crop_scale is not None:
            condition = condition + self.crop_scale.float() * crop
        full = linear(self.modulation, functional.silu(condition)).float().unflatten(-1, (1, 6, -1))
        gate1, gate2, scale1, scale2, shift1, shift2 = full.unbind(2)
        return gate1, gate2, scale1 + 1.0, scale2 + 1.0, shift1, shift2

    def project_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text [R, T, E] -> keys and values of cross-attention, each [R, H, T, c]."""
        return self.cross_attention.project(self.text_norm(text))

    def attend_self(
        self, hidden: Tensor, tokens: Tokens, modulation: Sequence[Tensor], memory: Memory
    ) -> Tensor:
        normed = torch.addcmul(modulation[4], self.self_input_norm(hidden), modulation[2])
        attended = self.self_attention(normed, tokens.positions, memory)
        return modulation[0] * self.self_output_norm(attended)

    def attend_text(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return self.cross_output_norm(self.cross_attention(self.cross_input_norm(hidden), key, value, mask))

    def feed(self, hidden: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        normed = torch.addcmul(modulation[5], self.feed_input_norm(hidden), modulation[3])
        return modulation[1] * self.feed_output_norm(self.feed_forward(normed))


class SwittiTransformer(ModelMixin, ConfigMixin):
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
        self.token_embedding = nn.Linear(channels, width)
        self.text_pool = nn.Linear(pooled_channels, width)
        if crop_condition:
            self.crop_frequencies = nn.Parameter(torch.zeros(width // 8), requires_grad=False)
            self.crop_projection = nn.Linear(width, width)
        hidden = self.hidden_width
        self.blocks = nn.ModuleList(
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
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, codes)

    @classmethod
    def published(cls, name: str, **overrides: Any) -> SwittiTransformer:
        """Builds a published model ("512", "512-AR", "1024" or "1024-AR") with empty weights.

        Raises:
            ValueError: When there is no such model.
        """
        from stepvar.models.switti.official import published_config

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

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number format of the matrix products and of the KV cache."""
        return self.blocks[0].self_attention.qkv.weight.dtype

    def rotary(self, scale: Scale) -> Tensor | None:
        """Rotary table of a scale, [1, N, c / 2] complex: first the angles that turn with the column."""
        config = self.config
        if not config.rotary:
            return None
        place = torch.arange(scale.tokens, device=self.level_embedding.weight.device)
        rows, columns = place // scale.width, place % scale.width
        stretch = config.rotary_extent / max(scale.width - 1, 1)
        head_dim = config.width // config.heads
        return rotary_table_2d(columns, rows, head_dim, config.rotary_theta, stretch)[None]

    def embed_condition(self, pooled: Tensor) -> Tensor:
        """Pooled text [R, P] -> the condition [R, C] in float32, which also is the first scale's input."""
        return linear(self.text_pool, pooled).float()

    def embed_crop(self) -> Tensor | None:
        """The condition of the one crop, [1, C] in float32; None for a model without.

        Phases reach thousands of radians, so their rounding is part of the model: they are computed in the
        number format of the weights, as in the official code.
        """
        if not self.config.crop_condition:
            return None
        return linear(self.crop_projection, self.crop_features()).float()

    def crop_features(self) -> Tensor:
        """Gaussian Fourier features of the crop, [1, C]."""
        weight = self.crop_frequencies
        places = torch.tensor(CROP, dtype=weight.dtype, device=weight.device)
        phases = places[:, None] * weight * 2 * math.pi
        return torch.cat([phases.sin(), phases.cos()], dim=1).view(1, -1)

    def places(self, scale: Scale) -> Tensor:
        """What is added to a scale's tokens, [1, 1 or N, C] in float32: its level, and learned places."""
        level = self.level_embedding.weight[scale.index].float()[None, None]
        if self.position_embedding is None:
            return level
        start = sum(side**2 for side in self.config.sides[: scale.index])
        return level + self.position_embedding[:, start : start + scale.tokens].float()

    def embed_start(self, condition: Tensor, scale: Scale) -> Tensor:
        """Condition [R, C] -> hidden states of the first scale, [R, N, C] in float32."""
        return condition[:, None] + self.start_embedding.float() + self.places(scale)

    def embed_tokens(self, codes: Tensor, scale: Scale) -> Tensor:
        """Resized accumulated codes [R, N, D] -> hidden states [R, N, C] in float32."""
        return linear(self.token_embedding, codes).float() + self.places(scale)

    def head_modulations(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Condition [R, C] -> (1 + scale, shift) of the head, each [R, 1, C]."""
        modulation = linear(self.head_modulation, functional.silu(condition)).float()
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
        return scale + 1.0, shift

    def logits(self, hidden: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """hidden [R, N, C] -> [R, N, V] in float32."""
        normed = modulated_norm(hidden, *modulation, self.config.norm_eps)
        return linear(self.head, normed).float()
