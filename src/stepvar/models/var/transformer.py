"""VAR's transformer: predicts the codes of a token map from coarser maps and a class.

Source of the architecture: FoundationVision/VAR, models/var.py and models/basic_var.py.
Shapes: B images, R rows (B conditional, then B unconditional), N tokens, L tokens of all scales, C width,
H heads, c = C / H, V codes, D channels of a code.
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

from stepvar.generation.cache import Memory
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.common.layers import FeedForward, linear, modulated_norm

LARGEST_LOG_SCALE = math.log(100)
"""Cosine attention's learned log scale is clamped here."""


class SelfAttention(nn.Module):
    """Attention of a token map to itself and to all coarser ones; places enter through the input alone.

    Args:
        width, heads: C, H.
        cosine: Compare directions, with a learned scale per head; else plain products.
    """

    def __init__(self, width: int, heads: int, cosine: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4))) if cosine else None
        self.output = nn.Linear(width, width)
        # A quarter of the usual scale, as in the official code.
        self.scale = 1.0 if cosine else 0.25 / math.sqrt(width // heads)

    def forward(self, hidden: Tensor, memory: Memory) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]; new keys and values go to `memory`."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = functional.linear(hidden.to(self.qkv.weight.dtype), self.qkv.weight, bias)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.log_scale is not None:
            scale = self.log_scale.float().clamp_max(LARGEST_LOG_SCALE).exp()
            query = (functional.normalize(query.float(), dim=-1) * scale).to(value.dtype)
            key = functional.normalize(key.float(), dim=-1).to(value.dtype)
        attended = memory.attend(query, key, value, scale=self.scale)
        return self.output(attended.transpose(1, 2).flatten(2))


class VARBlock(nn.Module):
    """Self-attention and feed-forward, each a residual branch.

    The modulation of a generation, [R, 1, C] a piece, comes from `modulations` in the order
    (gate of self-attention, gate of feed-forward, their scales, their shifts), 1 already added to
    the scales.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden_width: int,
        cosine: bool,
        shares_modulation: bool,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.modulation: nn.Parameter | nn.Linear
        if shares_modulation:
            self.modulation = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.modulation = nn.Linear(width, 6 * width)
        self.self_attention = SelfAttention(width, heads, cosine)
        self.feed_forward = FeedForward(width, hidden_width)

    def modulations(self, condition: Tensor, shared: Tensor | None) -> tuple[Tensor, ...]:
        """Condition [R, C], or what all blocks share of it [R, 1, 6, C] -> six [R, 1, C] in float32."""
        if shared is not None:
            full = self.modulation.float() + shared
        else:
            full = linear(self.modulation, functional.silu(condition.float())).float()
            full = full.unflatten(-1, (1, 6, -1))
        gate1, gate2, scale1, scale2, shift1, shift2 = full.unbind(2)
        return gate1, gate2, scale1 + 1.0, scale2 + 1.0, shift1, shift2

    def attend_self(self, hidden: Tensor, modulation: Sequence[Tensor], memory: Memory) -> Tensor:
        normed = modulated_norm(hidden, modulation[2], modulation[4], self.norm_eps)
        return modulation[0] * self.self_attention(normed, memory)

    def feed(self, hidden: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        normed = modulated_norm(hidden, modulation[3], modulation[5], self.norm_eps)
        return modulation[1] * self.feed_forward(normed)

    def forward(self, hidden: Tensor, modulation: Sequence[Tensor], memory: Memory) -> Tensor:
        """Both branches in turn, as training runs them: hidden [R, N, C] -> [R, N, C]."""
        hidden = hidden + self.attend_self(hidden, modulation, memory)
        return hidden + self.feed(hidden, modulation)


class VARTransformer(ModelMixin, ConfigMixin):
    """VAR's transformer of any size.

    Args:
        depth, width, heads: Layers, C, H.
        sides: Side of every scale's square token map, coarse to fine.
        codes, channels: V, D.
        classes: Number of classes; the class after the last is the unconditional one.
        feed_forward_width: Hidden width of the feed-forward; None is 4 C.
        shares_modulation: One AdaLN projection for all blocks, as in the 512 px model, or one a block.
        cosine_attention: Whether attention compares directions, as in every published model.
        norm_eps: Added to the variance in every norm.
        pixels_per_token: Side in pixels of a token of the last scale.
    """

    # These stay in float32 whatever the rest is cast to, as in the official inference.
    _keep_in_fp32_modules = [  # noqa: RUF012
        "start_embedding",
        "position_embedding",
        "level_embedding",
        "class_embedding",
    ]
    _no_split_modules = ["VARBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        sides: Sequence[int],
        codes: int = 4096,
        channels: int = 32,
        classes: int = 1000,
        feed_forward_width: int | None = None,
        shares_modulation: bool = False,
        cosine_attention: bool = True,
        norm_eps: float = 1e-6,
        pixels_per_token: int = 16,
    ) -> None:
        super().__init__()
        tokens = [side**2 for side in sides]
        self.start_embedding = nn.Parameter(torch.zeros(1, tokens[0], width))
        self.position_embedding = nn.Parameter(torch.zeros(1, sum(tokens), width))
        self.level_embedding = nn.Embedding(len(tokens), width)
        self.class_embedding = nn.Embedding(classes + 1, width)
        self.token_embedding = nn.Linear(channels, width)
        if shares_modulation:
            self.shared_modulation = nn.Linear(width, 6 * width)
        hidden_width = feed_forward_width or 4 * width
        self.blocks = nn.ModuleList(
            VARBlock(width, heads, hidden_width, cosine_attention, shares_modulation, norm_eps)
            for _ in range(depth)
        )
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, codes)

    @classmethod
    def published(cls, name: str, **overrides: Any) -> VARTransformer:
        """Builds a published size ("d16", "d20", "d24", "d30" or "d36") with empty weights.

        Raises:
            ValueError: When the size is unknown.
        """
        from stepvar.models.var.official import published_config

        return cls(**{**published_config(name), **overrides})

    @property
    def schedule(self) -> ScaleSchedule:
        """The one schedule that the weights know: every place has a learned embedding."""
        return ScaleSchedule.from_grids([(side, side) for side in self.config.sides])

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number format of the matrix products and of the KV cache."""
        return self.blocks[0].self_attention.qkv.weight.dtype

    @property
    def unconditional_class(self) -> int:
        return self.config.classes

    def embed_classes(self, classes: Tensor) -> Tensor:
        """Classes [R] -> their vectors [R, C] in float32: the condition, and the input of the first scale."""
        return self.class_embedding(classes).float()

    def places(self, scale: Scale) -> Tensor:
        """What is added to the tokens of a scale: places and level, [1, N, C] in float32."""
        start = sum(side**2 for side in self.config.sides[: scale.index])
        places = self.position_embedding[:, start : start + scale.tokens].float()
        return places + self.level_embedding.weight[scale.index].float()

    def embed_start(self, condition: Tensor, scale: Scale) -> Tensor:
        """Condition [R, C] -> hidden states of the first scale, [R, N, C] in float32."""
        return condition[:, None] + self.start_embedding.float() + self.places(scale)

    def embed_tokens(self, codes: Tensor, scale: Scale) -> Tensor:
        """Resized accumulated codes [R, N, D] -> hidden states [R, N, C] in float32."""
        return linear(self.token_embedding, codes).float() + self.places(scale)

    def modulations(self, condition: Tensor) -> list[tuple[Tensor, ...]]:
        """Condition [R, C] -> every block's modulation, see `VARBlock`."""
        shared = None
        if self.config.shares_modulation:
            shared = linear(self.shared_modulation, functional.silu(condition)).float()
            shared = shared.unflatten(-1, (1, 6, -1))
        return [block.modulations(condition, shared) for block in self.blocks]

    def head_modulations(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Condition [R, C] -> (1 + scale, shift) of the head, each [R, 1, C]."""
        modulation = linear(self.head_modulation, functional.silu(condition)).float()
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
        return scale + 1.0, shift

    def logits(self, hidden: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """hidden [R, N, C] -> [R, N, V] in float32."""
        normed = modulated_norm(hidden, *modulation, self.config.norm_eps)
        return linear(self.head, normed).float()
