"""Transformer of VAR: predicts the codes of a token map from coarser maps and a class.

Source of the architecture: FoundationVision/VAR, models/var.py and models/basic_var.py.
Shapes: B images, R rows (B conditional, then B unconditional), N tokens, L tokens of all scales, C width,
H heads, c = C / H, V codes, D channels of a code.
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

from stepvar.generation.cache import Memory
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.common.attention import ProjectedAttention
from stepvar.models.common.base import BlockList, ConfiguredModel, MultiMethodModule, through_forward
from stepvar.models.common.layers import (
    BlockModulation,
    FeedForward,
    Linear,
    embed_index,
    modulated_norm,
    scale_and_shift,
)
from stepvar.models.var.official import published_config


class SelfAttention(ProjectedAttention):
    """Attention of a token map to itself and to all coarser ones; positions enter through the input alone."""

    @through_forward
    def attend(self, hidden: Tensor, memory: Memory, constants: tuple[Tensor, Tensor | None]) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]; new keys and values go to `memory`."""
        bias, scales = constants
        query, key, value = self.project(hidden, bias).permute(2, 0, 3, 1, 4)
        if scales is not None:
            query = (functional.normalize(query.float(), dim=-1) * scales[:1, :, None]).to(value.dtype)
            key = functional.normalize(key.float(), dim=-1).to(value.dtype)
        return self.merge_heads(memory.attend(query, key, value, scale=self.softmax_scale))


class VARBlock(MultiMethodModule):
    """Self-attention and feed-forward, each a residual branch.

    Branches take hidden states [R, N, C] in float32, and compute in the number format that they are given.
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
            self.modulation = Linear(width, 6 * width)
        self.self_attention = SelfAttention(width, heads, cosine)
        self.feed_forward = FeedForward(width, hidden_width)

    @through_forward
    def modulations(self, condition: Tensor, shared: Tensor | None, dtype: torch.dtype) -> BlockModulation:
        """The modulation of a generation.

        Args:
            condition: [R, C].
            shared: [R, 1, 6, C], what all blocks share of it where they do.
            dtype: Number format of the products.
        """
        if shared is not None and isinstance(self.modulation, nn.Parameter):
            return BlockModulation.unpack(self.modulation.float() + shared)
        if isinstance(self.modulation, nn.Parameter):
            raise ValueError("A block with a learned modulation needs what all blocks share of it.")
        values = self.modulation(functional.silu(condition.float()).to(dtype)).float()
        return BlockModulation.unpack(values.unflatten(-1, (1, 6, -1)))

    @through_forward
    def attend_self(
        self,
        hidden: Tensor,
        modulation: BlockModulation,
        memory: Memory,
        constants: tuple[Tensor, Tensor | None],
        dtype: torch.dtype,
    ) -> Tensor:
        scale, shift = modulation.attention_scale, modulation.attention_shift
        normed = modulated_norm(hidden, scale, shift, self.norm_eps)
        return modulation.attention_gate * self.self_attention.attend(normed.to(dtype), memory, constants)

    @through_forward
    def feed(self, hidden: Tensor, modulation: BlockModulation, dtype: torch.dtype) -> Tensor:
        scale, shift = modulation.feed_forward_scale, modulation.feed_forward_shift
        normed = modulated_norm(hidden, scale, shift, self.norm_eps)
        return modulation.feed_forward_gate * self.feed_forward(normed.to(dtype))


class VARConfig(Mapping[str, Any]):
    """Arguments of `VARTransformer`, by name and as attributes."""

    depth: int
    width: int
    heads: int
    sides: Sequence[int]
    codes: int
    channels: int
    classes: int
    feed_forward_width: int | None
    shares_modulation: bool
    cosine_attention: bool
    norm_eps: float
    pixels_per_token: int


class VARTransformer(ConfiguredModel[VARConfig]):
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
    _repeated_blocks = ["VARBlock"]  # noqa: RUF012

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
        self.token_embedding = Linear(channels, width)
        if shares_modulation:
            self.shared_modulation = Linear(width, 6 * width)
        hidden_width = feed_forward_width or 4 * width
        self.blocks: BlockList[VARBlock] = BlockList(
            VARBlock(width, heads, hidden_width, cosine_attention, shares_modulation, norm_eps)
            for _ in range(depth)
        )
        self.head_modulation = Linear(width, 2 * width)
        self.head = Linear(width, codes)

    @classmethod
    def published(cls, name: str, **overrides: Any) -> VARTransformer:
        """Builds a published size ("d16", "d20", "d24", "d30" or "d36") with empty weights.

        Raises:
            ValueError: When the size is unknown.
        """
        return cls(**{**published_config(name), **overrides})

    @property
    def schedule(self) -> ScaleSchedule:
        """The one schedule that the weights know: every place has a learned embedding."""
        return ScaleSchedule.from_grids([(side, side) for side in self.config.sides])

    @property
    def unconditional_class(self) -> int:
        return self.config.classes

    def embed_classes(self, classes: Tensor) -> Tensor:
        """Classes [R] -> their vectors [R, C] in float32: the condition, and the input of the first scale."""
        vectors: Tensor = self.class_embedding(classes)
        return vectors.float()

    def _positions(self, scale: Scale, device: torch.device) -> Tensor:
        """Embeddings of the positions of a scale and of its level, [1, N, C] in float32."""
        start = sum(side**2 for side in self.config.sides[: scale.index])
        positions = self.position_embedding[:, start : start + scale.tokens].float()
        return positions + embed_index(self.level_embedding, scale.index, device)

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

    def modulations(self, condition: Tensor) -> list[BlockModulation]:
        """Condition [R, C] -> every block's modulation, see `VARBlock`."""
        shared, dtype = None, self.compute_dtype
        if self.config.shares_modulation:
            shared = self.shared_modulation(functional.silu(condition).to(dtype)).float()
            shared = shared.unflatten(-1, (1, 6, -1))
        return [block.modulations(condition, shared, dtype) for block in self.blocks]

    def head_modulations(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Condition [R, C] -> (1 + scale, shift) of the head, each [R, 1, C]."""
        return scale_and_shift(self.head_modulation, condition, self.compute_dtype)

    def logits(self, hidden: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """hidden [R, N, C] -> [R, N, V] in float32."""
        normed = modulated_norm(hidden, *modulation, self.config.norm_eps).to(self.compute_dtype)
        values: Tensor = self.head(normed)
        return values.float()
