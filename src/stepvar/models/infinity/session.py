"""Session of Infinity, one batch of prompts: what is computed once, and the accumulated codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.cache import Cache, KVCache, Memory
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import Branch
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens, row_count
from stepvar.models.common.layers import padding_mask
from stepvar.models.common.resizing import resize_bilinear
from stepvar.models.infinity.quantizer import codes_from_bits, latent_bits_from_tokens
from stepvar.models.infinity.transformer import InfinityTransformer


@dataclass(frozen=True)
class TextCondition:
    """Text features of a batch, without padding.

    Attributes:
        positive: One [T_i, E] per image.
        negative: One [T_i, E] per image: of a negative prompt, or the learned unconditional text;
            empty when nothing is guided.
    """

    positive: tuple[Tensor, ...]
    negative: tuple[Tensor, ...] = ()

    @property
    def rows(self) -> tuple[Tensor, ...]:
        return self.positive + self.negative


class InfinitySession:
    """Everything that lives as long as one generation; see `stepvar.generation.loop.Session`.

    Args:
        transformer: The model.
        condition: Text of every row.
        schedule: The scales.
        patchify: Whether a token stands for 2 x 2 latent positions, as in the 8B model.
        device: Where it runs; by default where the transformer is.
    """

    def __init__(
        self,
        transformer: InfinityTransformer,
        condition: TextCondition,
        schedule: ScaleSchedule,
        patchify: bool = False,
        device: torch.device | None = None,
    ) -> None:
        transformer.validate_schedule(schedule)
        self.transformer = transformer
        self.device = device or transformer.device
        self.dtype = transformer.compute_dtype
        self.schedule = schedule
        self.depth = len(transformer.blocks)
        self.images = len(condition.positive)
        self.copies = 2 if condition.negative else 1
        self.patch = 2 if patchify else 1
        self._prepare_text(condition)
        channels = transformer.config.bits // self.patch**2
        final = schedule.final
        self.latent = torch.zeros(
            *(self.images, channels, final.height * self.patch, final.width * self.patch),
            dtype=torch.float32,
            device=self.device,
        )

    def _prepare_text(self, condition: TextCondition) -> None:
        """Text keys and values, pooled text and modulations: once for all scales."""
        model = self.transformer
        lengths = [len(text) for text in condition.rows]
        compact = torch.cat([text.to(self.device) for text in condition.rows])
        normed, projected = model.embed_text(compact)
        longest = max(lengths)
        self.mask = padding_mask(lengths, longest, self.device)
        normed, projected = (_pad(values, lengths) for values in (normed, projected))
        self.pooled = model.text_pool(normed, self.mask)
        self.text = [block.cross_attention.project(projected) for block in model.blocks]
        shared = model.shared_modulations(self.pooled)
        self.modulations = [block.modulations(shared) for block in model.blocks]
        self.constants = [block.self_attention.constants() for block in model.blocks]
        self.head_modulation = model.head_modulations(self.pooled)

    def allocate_cache(self, plan: GenerationPlan) -> KVCache:
        config = self.transformer.config
        lengths = [plan.cached_tokens(layer) for layer in range(self.depth)]
        return KVCache(
            lengths,
            self.images * self.copies,
            config.heads,
            config.width // config.heads,
            self.dtype,
            self.device,
            plan.int8_cache,
        )

    def prefill(self, cache: Cache) -> None:
        """Nothing: text enters by cross-attention, whose keys and values are not in the cache."""

    def embed(self, scale: Scale, rows: slice) -> tuple[Tensor, Tokens]:
        model = self.transformer
        tokens = Tokens(scale, model.rotary(scale, self.schedule.position_grid, self.device))
        if scale.index == 0:
            return model.embed_start(self.pooled[rows], scale), tokens
        hidden = model.embed_tokens(self.next_input(scale), scale)
        return hidden.repeat(row_count(rows) // self.images, 1, 1), tokens

    def resized_latent(self, scale: Scale) -> Tensor:
        """Accumulated codes at a scale's latent grid: [B, d, h, w], doubled sides with patchify."""
        return resize_bilinear(self.latent, (scale.height * self.patch, scale.width * self.patch))

    def next_input(self, scale: Scale) -> Tensor:
        """Accumulated codes at a scale's token grid: [B, N, D]."""
        return functional.pixel_unshuffle(self.resized_latent(scale), self.patch).flatten(2).transpose(1, 2)

    def branches(self, layer: int, memory: Memory, rows: slice) -> Sequence[tuple[str, Branch]]:
        block, constants = self.transformer.blocks[layer], self.constants[layer]
        modulation, (key, value), mask = self.modulations[layer], self.text[layer], self.mask
        dtype = self.dtype
        if row_count(rows) < self.images * self.copies:
            modulation = modulation.of_rows(rows)
            key, value, mask = key[rows], value[rows], None if mask is None else mask[rows]
        return (
            (
                "self_attention",
                lambda hidden, tokens: block.attend_self(
                    hidden, tokens, modulation, memory, constants, dtype
                ),
            ),
            ("cross_attention", lambda hidden, tokens: block.attend_text(hidden, key, value, mask)),
            ("feed_forward", lambda hidden, tokens: block.feed(hidden, modulation, dtype)),
        )

    def logits(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        scale, shift = (part[rows or slice(len(hidden))] for part in self.head_modulation)
        return self.transformer.logits(hidden, (scale, shift))

    def commit(self, scale: Scale, choice: Tensor, hidden: Tensor, tokens: Tokens) -> None:
        """Adds the codes of bits [B, N, D] to the latent."""
        bits = choice.unflatten(1, (scale.height, scale.width))
        if self.patch > 1:
            bits = latent_bits_from_tokens(bits)
        self.latent = self.latent + resize_bilinear(codes_from_bits(bits), self.latent.shape[-2:])


def _pad(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows of different lengths, concatenated [sum, C], as [R, T, C]."""
    return torch.nn.utils.rnn.pad_sequence(values.split(list(lengths)), batch_first=True)
