"""Infinity as the official code computes it, written out plainly: what our own dense run is measured against.

The arithmetic of FoundationVision/Infinity, models/infinity.py and models/basic.py, on the weights of an
`InfinityTransformer`, with its costs:

- text padded to the model's longest prompt, with a mask;
- keys and values of the text projected at every scale, in every block;
- modulations added up at every scale, in every block, and the head's at every scale;
- keys and values of self-attention appended by concatenation, in every block;
- rotary positions as real products of stacked pairs;
- unconditional rows computed to the end.

Shapes: R rows (B conditional, then B unconditional), N tokens, C width, H heads, c = C / H, T text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import Sampler
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.common.attention import LARGEST_LOG_SCALE
from stepvar.models.common.resizing import resize_bilinear
from stepvar.models.infinity.quantizer import codes_from_bits
from stepvar.models.infinity.session import TextCondition
from stepvar.models.infinity.transformer import (
    CrossAttention,
    InfinityBlock,
    InfinityTransformer,
    SelfAttention,
)

EPSILON = 1e-6


@dataclass
class BlockCache:
    """Keys and values of one block so far, each [R, H, N so far, c]."""

    key: Tensor | None = None
    value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of a scale; returns all of them."""
        if self.key is None or self.value is None:
            self.key, self.value = key, value
        else:
            self.key = torch.cat((self.key, key), dim=2)
            self.value = torch.cat((self.value, value), dim=2)
        return self.key, self.value


@dataclass
class PlainResult:
    """What a generation leaves.

    Attributes:
        latent: [B, d, H, W] accumulated codes.
        logits: [B, N, D, 2] a scale, guided.
    """

    latent: Tensor
    logits: list[Tensor] = field(default_factory=list)


class PlainInfinity:
    """Generates with the weights of a transformer, as the official code does.

    Args:
        transformer: Its weights are used where they are; nothing is copied.
    """

    def __init__(self, transformer: InfinityTransformer) -> None:
        self.transformer = transformer

    @property
    def device(self) -> torch.device:
        return self.transformer.level_embedding.weight.device

    def autocast(self) -> AbstractContextManager[object]:
        """The official inference runs under autocast; in float32 there is nothing to cast."""
        dtype = self.transformer.compute_dtype
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype=dtype)

    @torch.no_grad()
    def generate(
        self,
        condition: TextCondition,
        schedule: ScaleSchedule,
        guidance: Guidance,
        sampler: Sampler,
        keep_logits: bool = False,
        observer: Callable[[Scale], None] | None = None,
    ) -> PlainResult:
        """Runs all scales.

        Args:
            condition: Text of every row.
            schedule: The scales.
            guidance: Classifier-free guidance at the logits.
            sampler: Draws the bits.
            keep_logits: Whether the result has the logits of every scale.
            observer: Hears of every scale that is done.
        """
        model = self.transformer
        images = len(condition.positive)
        with self.autocast():
            text, mask = self._pad_text(condition)
            normed = model.text_norm(text)
            pooled = model.text_pool(normed, mask)
            projected = model.text_projection(_cast(normed, model.text_projection[0].weight))
            with torch.autocast(self.device.type, enabled=False):
                shared = model.shared_modulation(functional.silu(pooled.float()))
            shared = shared.view(len(text), 1, 6, -1)
            caches = [BlockCache() for _ in model.blocks]
            grid = (schedule.final.height, schedule.final.width)
            latent = torch.zeros(images, model.config.bits, *grid, device=self.device)
            result = PlainResult(latent)
            hidden = pooled[:, None] + model.start_embedding
            for scale in schedule:
                hidden = hidden + model.level_embedding.weight[scale.index]
                turn = _rotation(model, scale, schedule.position_grid)
                for block, cache in zip(model.blocks, caches, strict=True):
                    hidden = _run_block(block, hidden, shared, projected, mask, turn, cache)
                logits = self._logits(hidden, pooled, scale, images, guidance, sampler)
                if keep_logits:
                    result.logits.append(logits)
                bits = sampler.sample(logits, scale).unflatten(1, (scale.height, scale.width))
                result.latent = result.latent + resize_bilinear(codes_from_bits(bits), grid)
                if scale.index + 1 < len(schedule):
                    hidden = self._next_input(result.latent, schedule[scale.index + 1], len(text) // images)
                if observer is not None:
                    observer(scale)
        return result

    def _pad_text(self, condition: TextCondition) -> tuple[Tensor, Tensor]:
        """Text [R, T, E] padded with zeros to the longest prompt, and its mask [R, 1, 1, T]."""
        length = self.transformer.config.text_length
        lengths = torch.tensor([len(row) for row in condition.rows], device=self.device)
        padded = torch.stack(
            [functional.pad(row.to(self.device), (0, 0, 0, length - len(row))) for row in condition.rows]
        )
        return padded, (torch.arange(length, device=self.device) < lengths[:, None])[:, None, None]

    def _next_input(self, latent: Tensor, scale: Scale, copies: int) -> Tensor:
        embedding = self.transformer.token_embedding
        codes = resize_bilinear(latent, (scale.height, scale.width)).flatten(2).transpose(1, 2)
        return embedding(_cast(codes, embedding.weight)).repeat(copies, 1, 1)

    def _logits(
        self,
        hidden: Tensor,
        pooled: Tensor,
        scale: Scale,
        images: int,
        guidance: Guidance,
        sampler: Sampler,
    ) -> Tensor:
        """Guided logits [B, N, D, 2] in float32, as the official head computes them."""
        model = self.transformer
        weight = guidance.weights[scale.index]
        if weight == 1.0:
            hidden, pooled = hidden[:images], pooled[:images]
        with torch.autocast(self.device.type, enabled=False):
            modulation = model.head_modulation(functional.silu(pooled.float())).view(len(pooled), 1, 2, -1)
            factor, shift = modulation.unbind(2)
            normed = functional.layer_norm(hidden.float(), hidden.shape[-1:], eps=EPSILON)
            logits = model.head(normed.mul(factor.add(1.0)).add(shift)) / sampler.temperature(scale)
        if weight != 1.0:
            logits = weight * logits[:images] + (1.0 - weight) * logits[images:]
        return logits.unflatten(-1, (-1, 2))


def _run_block(
    block: InfinityBlock,
    hidden: Tensor,
    shared: Tensor,
    text: Tensor,
    mask: Tensor,
    turn: Tensor,
    cache: BlockCache,
) -> Tensor:
    """One block: self-attention, cross-attention, feed-forward."""
    gate1, gate2, scale1, scale2, shift1, shift2 = (block.modulation.float() + shared).unbind(2)
    normed = functional.layer_norm(hidden.float(), hidden.shape[-1:], eps=EPSILON)
    attended = _attend_self(block.self_attention, normed.mul(scale1.add(1.0)).add(shift1), turn, cache)
    hidden = hidden + attended.mul(gate1)
    norm = block.cross_norm
    normed = functional.layer_norm(
        hidden.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
    )
    hidden = hidden + _attend_text(block.cross_attention, normed, text, mask).float()
    normed = functional.layer_norm(hidden.float(), hidden.shape[-1:], eps=EPSILON)
    modulated = normed.mul(scale2.add(1.0)).add(shift2)
    inner = functional.gelu(
        block.feed_forward.up(_cast(modulated, block.feed_forward.up.weight)), approximate="tanh"
    )
    return hidden + block.feed_forward.down(inner).mul(gate2)


def _attend_self(layer: SelfAttention, hidden: Tensor, turn: Tensor, cache: BlockCache) -> Tensor:
    rows, count, width = hidden.shape
    bias = torch.cat((layer.query_bias, torch.zeros_like(layer.query_bias), layer.value_bias))
    qkv = functional.linear(_cast(hidden, layer.qkv.weight), layer.qkv.weight, bias)
    query, key, value = qkv.view(rows, count, 3, layer.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    scale = layer.log_scale.float().clamp_max(LARGEST_LOG_SCALE).exp()
    query = functional.normalize(query.float(), dim=-1).mul(scale)
    key = functional.normalize(key.float(), dim=-1)
    query, key = _rotate(torch.stack((query, key)), turn)
    key, value = cache.append(key, value)
    attended = functional.scaled_dot_product_attention(
        query.to(value.dtype), key.to(value.dtype), value, scale=1.0
    )
    return layer.output(attended.transpose(1, 2).reshape(rows, count, width))


def _attend_text(layer: CrossAttention, hidden: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    rows, count, width = hidden.shape
    head_dim = width // layer.heads
    bias = torch.cat((torch.zeros_like(layer.value_bias), layer.value_bias))
    pairs = functional.linear(_cast(text, layer.key_value.weight), layer.key_value.weight, bias)
    key, value = pairs.view(rows, -1, 2, layer.heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    query = layer.query(_cast(hidden, layer.query.weight)).view(rows, count, layer.heads, head_dim)
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=mask, scale=1.0 / math.sqrt(head_dim)
    )
    return layer.output(attended.transpose(1, 2).reshape(rows, count, width))


def _rotation(model: InfinityTransformer, scale: Scale, position_grid: tuple[int, int]) -> Tensor:
    """Cosines and sines of a scale's angles, [2, 1, 1, N, c / 2]."""
    table = model.rotary(scale, position_grid)
    return torch.stack((table.real, table.imag)).unsqueeze(2)


def _rotate(pair: Tensor, turn: Tensor) -> Tensor:
    """Rotates queries and keys, stacked [2, R, H, N, c], by real products."""
    cosine, sine = turn
    split = pair.reshape(*pair.shape[:-1], -1, 2)
    first, second = split[..., 0], split[..., 1]
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.reshape(pair.shape)


def _cast(values: Tensor, weight: Tensor) -> Tensor:
    """What autocast does on a GPU; on a CPU some of its operations are not covered."""
    return values.to(weight.dtype)
