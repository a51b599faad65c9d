"""Transformer of HART: predicts the code of every token of a map from coarser maps and the prompt.

The prompt's features are tokens of the sequence: all of them, padding included, take the place of the first
scale's only token, and every later scale sees them through the KV cache.

Source of the architecture: mit-han-lab/hart, hart/modules/models/transformer and hart/modules/networks.
Shapes: B images, R rows (B conditional, then B unconditional), N tokens, C width, H heads, c = C / H,
T context tokens, E channels of the text features, V codes, D channels of a code.
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
from stepvar.generation.tokens import Tokens
from stepvar.models.common.attention import ProjectedAttention, rotary_of
from stepvar.models.common.base import BlockList, ConfiguredModel, MultiMethodModule, through_forward
from stepvar.models.common.layers import (
    BlockModulation,
    GatedFeedForward,
    Linear,
    RMSNorm,
    apply_in_chunks,
    scale_and_shift,
    sinusoid,
)
from stepvar.models.hart.diffusion import SINUSOID_CHANNELS, DiffusionHead

MODULATIONS = ("none", "block", "table")
"""How a block is modulated: not at all (as published), by a layer of its own, or by a learned table."""

POOLINGS = ("max", "mean")


def gated_width(width: int, ratio: float = 4.0) -> int:
    """Hidden width of the gated feed-forward: two thirds of ratio x C, rounded up to a multiple of 256."""
    return int(width * ratio * 2 / 3 + 255) // 256 * 256


def rotary_halves_table(first: Tensor, second: Tensor) -> Tensor:
    """Cosines and sines for `rotate_halves`.

    Args:
        first, second: [..., c / 2] angles of the first and of the second half of a head's channels.

    Returns:
        [..., 2, c] float32: the cosines, and the sines with the sign they enter with.
    """
    cosines = torch.cat([first.cos(), second.cos()], dim=-1)
    return torch.stack([cosines, torch.cat([-first.sin(), second.sin()], dim=-1)], dim=-2)


def rotate_halves(inputs: Tensor, table: Tensor) -> Tensor:
    """Mixes the halves of every head's channels by the angles of the token's place.

    Where both halves have the same angle, this is a rotation. In a plane they have not (rows turn the first
    half, columns the second), so that it is none; the weights were trained with it as it is.

    Args:
        inputs: [R, N, ..., c] in float32.
        table: [R or 1, N, 2, c] from `rotary_halves_table`.
    """
    view = (*table.shape[:2], *(1,) * (inputs.dim() - 3), table.shape[-1])
    cosines, sines = (part.reshape(view) for part in table.unbind(2))
    half = inputs.shape[-1] // 2
    turned = inputs * cosines
    turned[..., :half].addcmul_(inputs[..., half:], sines[..., :half])
    turned[..., half:].addcmul_(inputs[..., :half], sines[..., half:])
    return turned


class SelfAttention(ProjectedAttention):
    """Attention to everything earlier and to the own scale; see `ProjectedAttention`."""

    @through_forward
    def attend(
        self, hidden: Tensor, table: Tensor, memory: Memory, constants: tuple[Tensor, Tensor | None]
    ) -> Tensor:
        """hidden [R, N, C] -> [R, N, C]; new keys and values go to `memory`."""
        bias, scales = constants
        qkv = self.project(hidden, bias)

        def scale_and_rotate(pair: Tensor, table: Tensor) -> Tensor:
            directions = pair if scales is None else functional.normalize(pair, dim=-1) * scales
            return rotate_halves(directions, table)

        # Queries and keys go through both together: half the calls.
        pair = apply_in_chunks(scale_and_rotate, qkv[:, :, :2], table)
        query, key, value = (part.transpose(1, 2) for part in (pair[:, :, 0], pair[:, :, 1], qkv[:, :, 2]))
        return self.merge_heads(memory.attend(query, key, value, scale=self.softmax_scale))


class HARTBlock(MultiMethodModule):
    """Self-attention and feed-forward, each a residual branch; both read through one norm.

    Args:
        width, heads: C, H.
        hidden_width: Of the feed-forward.
        modulation: One of `MODULATIONS`.
        cosine: As for `ProjectedAttention`.
        eps: Of the norm.
    """

    def __init__(
        self, width: int, heads: int, hidden_width: int, modulation: str, cosine: bool, eps: float
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps)
        self.attention = SelfAttention(width, heads, cosine)
        self.feed_forward = GatedFeedForward(width, hidden_width)
        self.modulation = Linear(width, 6 * width) if modulation == "block" else None
        self.table = nn.Parameter(torch.zeros(6, width)) if modulation == "table" else None

    @through_forward
    def modulations(self, pooled: Tensor, dtype: torch.dtype) -> BlockModulation | None:
        """The modulation of a generation, from the pooled context [R, C]; None without any."""
        if self.modulation is not None:
            values = self.modulation(functional.silu(pooled).to(dtype)).float().unflatten(-1, (6, -1))
        elif self.table is not None:
            values = self.table.float() + pooled[:, None]
        else:
            return None
        return BlockModulation.unpack(values[:, None])

    @through_forward
    def attend(
        self,
        hidden: Tensor,
        tokens: Tokens,
        modulation: BlockModulation | None,
        memory: Memory,
        constants: tuple[Tensor, Tensor | None],
        dtype: torch.dtype,
    ) -> Tensor:
        normed = self.norm(hidden)
        if modulation is not None:
            normed = torch.addcmul(modulation.attention_shift, normed, modulation.attention_scale)
        attended = self.attention.attend(normed.to(dtype), rotary_of(tokens), memory, constants)
        return attended if modulation is None else modulation.attention_gate * attended

    @through_forward
    def feed(self, hidden: Tensor, modulation: BlockModulation | None, dtype: torch.dtype) -> Tensor:
        normed = self.norm(hidden)
        if modulation is not None:
            normed = torch.addcmul(modulation.feed_forward_shift, normed, modulation.feed_forward_scale)
        outputs: Tensor = self.feed_forward(normed.to(dtype))
        return outputs if modulation is None else modulation.feed_forward_gate * outputs


class LevelEmbedding(nn.Module):
    """Which scale a token belongs to: a table, or a small network on a wave of the scale's number.

    Args:
        width: C.
        levels: Rows of the table; None for the network, which takes any number.
    """

    def __init__(self, width: int, levels: int | None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(levels, width)) if levels else None
        if not levels:
            self.first = Linear(SINUSOID_CHANNELS, width)
            self.second = Linear(width, width)

    def forward(self, level: int, device: torch.device | None = None) -> Tensor:
        """The vector [C] of a scale, float32.

        Args:
            device: Where the model runs; by default where the weights are.
        """
        if self.table is not None:
            return self.table[level].float()
        number = torch.full((), float(level), device=device or self.first.weight.device, dtype=torch.float32)
        wave = sinusoid(number, SINUSOID_CHANNELS)
        vector: Tensor = self.second(functional.silu(self.first(wave)))
        return vector.float()


class HARTConfig(Mapping[str, Any]):
    """Arguments of `HARTTransformer`, by name and as attributes."""

    depth: int
    width: int
    heads: int
    codebook_size: int
    latent_channels: int
    context_tokens: int
    context_channels: int
    sides: Sequence[int]
    hidden_width: int | None
    modulation: str
    pooling: str
    level_table: bool
    context_norm: bool
    cosine_attention: bool
    eps: float
    diffusion_width: int
    diffusion_depth: int
    diffusion_steps: str
    pixels_per_token: int


class HARTTransformer(ConfiguredModel[HARTConfig]):
    """HART's transformer with its diffusion head, of any size.

    Args:
        depth, width, heads: Layers, C, H.
        codebook_size, latent_channels: V, D.
        context_tokens, context_channels: T, E.
        sides: Rows and columns of every scale, coarse to fine.
        hidden_width: Of the feed-forward; None takes `gated_width`.
        modulation: How blocks are modulated, one of `MODULATIONS`.
        pooling: What a block's own modulation reads of the context: the largest value of every channel, or
            the mean over the prompt's tokens.
        level_table: Whether scales have a table of vectors; otherwise a network makes them.
        context_norm: Whether the text features are normalised.
        cosine_attention: Whether attention compares directions only.
        eps: Of the norms.
        diffusion_width, diffusion_depth: Sizes of the diffusion head.
        diffusion_steps: Its steps, as a number or a list of numbers a section: see `DiffusionSchedule`.
        pixels_per_token: Side in pixels of a token of the last scale.

    Raises:
        ValueError: When the arguments do not describe a model.
    """

    # These are small or run once, and stay in float32 whatever the rest is cast to.
    _keep_in_fp32_modules = ["text_norm", "level_embedding"]  # noqa: RUF012
    _no_split_modules = ["HARTBlock"]  # noqa: RUF012
    _repeated_blocks = ["HARTBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        codebook_size: int = 4096,
        latent_channels: int = 32,
        context_tokens: int = 300,
        context_channels: int = 1536,
        sides: Sequence[int] = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
        hidden_width: int | None = None,
        modulation: str = "none",
        pooling: str = "max",
        level_table: bool = False,
        context_norm: bool = True,
        cosine_attention: bool = False,
        eps: float = 1e-6,
        diffusion_width: int = 1024,
        diffusion_depth: int = 6,
        diffusion_steps: str = "8",
        pixels_per_token: int = 16,
    ) -> None:
        super().__init__()
        _check_choices(width, heads, sides, modulation, pooling)
        self.text_norm = RMSNorm(context_channels, eps) if context_norm else None
        self.context_embedding = Linear(context_channels, width)
        self.token_embedding = Linear(latent_channels, width)
        self.level_embedding = LevelEmbedding(width, len(sides) if level_table else None)
        hidden_width = hidden_width or gated_width(width)
        self.blocks: BlockList[HARTBlock] = BlockList(
            HARTBlock(width, heads, hidden_width, modulation, cosine_attention, eps) for _ in range(depth)
        )
        self.head_norm = RMSNorm(width, eps)
        self.head_modulation = Linear(width, 2 * width)
        self.head = Linear(width, codebook_size)
        self.residual_norm = RMSNorm(width, eps)
        self.residual_head = DiffusionHead(
            latent_channels, width, diffusion_width, diffusion_depth, diffusion_steps
        )

    @classmethod
    def published(cls, **overrides: Any) -> HARTTransformer:
        """Builds the published size (HART-0.7B, 1024 pixels) with empty weights."""
        return cls(**{"depth": 24, "width": 1536, "heads": 24, **overrides})

    @property
    def schedule(self) -> ScaleSchedule:
        """The one schedule that this model draws, with the last map at once."""
        return ScaleSchedule.from_grids([(side, side) for side in self.config.sides])

    @property
    def head_dim(self) -> int:
        return self.config.width // self.config.heads

    def embed_context(self, features: Tensor) -> Tensor:
        """Text features [R, T, E] -> context tokens [R, T, C] in float32, without a level."""
        normed = features if self.text_norm is None else self.text_norm(features)
        context: Tensor = self.context_embedding(normed.to(self.compute_dtype))
        return context.float()

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codes [..., D] -> [..., C] in float32, without a level."""
        hidden: Tensor = self.token_embedding(
            codes.to(self.compute_dtype, memory_format=torch.contiguous_format)
        )
        return hidden.float()

    def context_positions(self, positions: Tensor) -> Tensor:
        """Table of the context tokens [R, T, 2, c] from their numbers [R, T]."""
        half = self.head_dim // 2
        angles = positions.float()[..., None] * _frequencies(half, positions.device)
        return rotary_halves_table(angles, angles)

    def map_positions(self, scale: Scale, grid: tuple[int, int], offsets: Tensor) -> Tensor:
        """Table of a map's tokens, [R, N, 2, c].

        A token lies where its grid maps it to on the position grid, moved along both axes by the number of
        the prompt's last token, which differs from row to row.

        Args:
            scale: The scale.
            grid: Rows and columns of the position grid.
            offsets: [R].
        """
        axes = [
            torch.arange(size, device=offsets.device).float() / size * full
            for size, full in zip((scale.height, scale.width), grid, strict=True)
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        quarter = self.head_dim // 4
        moved = places[None, :, :, None] + offsets.float()[:, None, None, None]
        angles = (moved * _frequencies(quarter, offsets.device)).repeat(1, 1, 1, 2)
        return rotary_halves_table(*angles.unbind(2))

    def head_modulations(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled context [R, C] -> (1 + scale, shift) of the head, each [R, 1, C]."""
        return scale_and_shift(self.head_modulation, pooled, self.compute_dtype)

    def logits(self, hidden: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        """hidden [R, N, C] -> [R, N, V] in float32."""
        scale, shift = modulation
        normed = torch.addcmul(shift, self.head_norm(hidden), scale)
        values: Tensor = self.head(normed.to(self.compute_dtype))
        return values.float()

    def residual_condition(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Condition of the diffusion head for every token, [R, N, C].

        Args:
            hidden: [R, N, C] hidden states after the last block.
            codes: [R or 1, N, D] codes that were drawn from them.
        """
        condition: Tensor = self.residual_norm(hidden.float() + self.embed_codes(codes))
        return condition


def pool_largest(context: Tensor) -> Tensor:
    """Largest value of every channel over all context tokens [R, T, C], padding included: [R, C]."""
    return context.amax(dim=1)


def pool_mean(context: Tensor, mask: Tensor) -> Tensor:
    """Mean over the prompt's tokens of [R, T, C], with mask [R, T]: [R, C]."""
    mask = mask.to(context.dtype)
    total = torch.einsum("rtc,rt->rc", context, mask)
    return total / mask.sum(dim=1, keepdim=True).clamp_min(1.0)


def _frequencies(count: int, device: torch.device) -> Tensor:
    """10000^(-j / count) for j = 0 .. count - 1."""
    return 1.0 / 10000.0 ** (torch.arange(count, device=device).float() / count)


def _check_choices(width: int, heads: int, sides: Sequence[int], modulation: str, pooling: str) -> None:
    if width % heads or (width // heads) % 4:
        raise ValueError(
            f"A width of {width} does not divide into {heads} heads whose channels divide by 4, "
            "as positions in a plane need."
        )
    if len(sides) < 2 or sides[0] != 1:
        raise ValueError(f"The sides are {list(sides)}; HART starts with 1 and has two scales or more.")
    for name, value, known in (("modulation", modulation, MODULATIONS), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise ValueError(f"Unknown {name} {value!r}; known are {', '.join(known)}.")
