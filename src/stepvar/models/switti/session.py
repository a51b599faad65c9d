"""Switti at work on one batch of prompts: what is computed once, and the accumulated codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.generation.attention import Cache, KVCache, Memory, NoCache
from stepvar.generation.sampling import CodebookChoice
from stepvar.generation.schedule import Scale
from stepvar.generation.tokens import Tokens
from stepvar.models.layers import padding_mask
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.vector_quantizer import VectorQuantizer, map_tokens
from stepvar.pruning.base import Branch
from stepvar.pruning.plan import GenerationPlan


@dataclass(frozen=True)
class TextFeatures:
    """What both text encoders make of prompts, without padding.

    Attributes:
        tokens: One [T_i, E] a prompt.
        pooled: [prompts, P], of the second encoder.
    """

    tokens: tuple[Tensor, ...]
    pooled: Tensor

    def repeated(self, times: int) -> TextFeatures:
        """Every prompt several times in a row."""
        tokens = tuple(text for text in self.tokens for _ in range(times))
        return TextFeatures(tokens, self.pooled.repeat_interleave(times, dim=0))


class SwittiSession:
    """Everything that lives as long as one generation; see `stepvar.generation.loop.Session`.

    Args:
        transformer: The model.
        quantizer: The tokenizer's quantiser: turns codes into what a scale adds to the latent.
        positive: Text of every image.
        negative: Text of every image's unconditional copy; None when nothing is guided.
    """

    def __init__(
        self,
        transformer: SwittiTransformer,
        quantizer: VectorQuantizer,
        positive: TextFeatures,
        negative: TextFeatures | None,
    ) -> None:
        self.transformer = transformer
        self.quantizer = quantizer
        self.schedule = transformer.schedule
        self.depth = len(transformer.blocks)
        self.images = len(positive.tokens)
        self.copies = 1 if negative is None else 2
        self._prepare_text([positive] if negative is None else [positive, negative])
        final = self.schedule.final
        channels = transformer.config.channels
        self.latent = torch.zeros(self.images, channels, final.height, final.width, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.transformer.level_embedding.weight.device

    def _prepare_text(self, sides: Sequence[TextFeatures]) -> None:
        """Text keys and values, condition and modulations: once for all scales."""
        model = self.transformer
        tokens = [text.to(self.device) for side in sides for text in side.tokens]
        lengths = [len(text) for text in tokens]
        padded = pad_sequence(tokens, batch_first=True)
        self.mask = padding_mask(lengths, padded.shape[1], self.device)
        self.text = [block.project_text(padded) for block in model.blocks]
        self.condition = model.embed_condition(torch.cat([side.pooled for side in sides]).to(self.device))
        crop = model.embed_crop()
        self.modulations = [block.modulations(self.condition, crop) for block in model.blocks]
        self.head_modulation = model.head_modulations(self.condition)

    def allocate_cache(self, plan: GenerationPlan) -> Cache:
        config = self.transformer.config
        if not config.causal:
            return NoCache()
        lengths = [plan.cached_tokens(layer) for layer in range(self.depth)]
        return KVCache(
            lengths,
            self.images * self.copies,
            config.heads,
            config.width // config.heads,
            self.transformer.compute_dtype,
            self.device,
        )

    def embed(self, scale: Scale, rows: int) -> tuple[Tensor, Tokens]:
        tokens = Tokens(scale, self.transformer.rotary(scale))
        if scale.index == 0:
            return self.transformer.embed_start(self.condition[:rows], scale), tokens
        hidden = self.transformer.embed_tokens(self.next_input(scale), scale)
        return hidden.repeat(rows // self.images, 1, 1), tokens

    def next_input(self, scale: Scale) -> Tensor:
        """Accumulated codes at a scale's token grid: [B, N, D]."""
        return map_tokens(self.latent, (scale.height, scale.width))

    def branches(self, layer: int, memory: Memory, rows: int) -> Sequence[tuple[str, Branch]]:
        block, modulation = self.transformer.blocks[layer], self.modulations[layer]
        (key, value), mask = self.text[layer], self.mask
        if rows < self.images * self.copies:
            modulation = tuple(part[:rows] for part in modulation)
            key, value, mask = key[:rows], value[:rows], None if mask is None else mask[:rows]
        return (
            ("self_attention", lambda hidden, tokens: block.attend_self(hidden, tokens, modulation, memory)),
            ("cross_attention", lambda hidden, tokens: block.attend_text(hidden, key, value, mask)),
            ("feed_forward", lambda hidden, tokens: block.feed(hidden, modulation)),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        scale, shift = (part[: hidden.shape[0]] for part in self.head_modulation)
        return self.transformer.logits(hidden, (scale, shift))

    def commit(self, scale: Scale, choice: CodebookChoice, hidden: Tensor, tokens: Tokens) -> None:
        """Adds the codes [B, N, D] of a choice to the latent."""
        self.latent = self.quantizer.add(self.latent, choice.codes, scale, len(self.schedule))
