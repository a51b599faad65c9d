"""VAR at work on one batch of classes: what is computed once, and the accumulated codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.generation.attention import KVCache, Memory
from stepvar.generation.sampling import CodebookChoice
from stepvar.generation.schedule import Scale
from stepvar.generation.tokens import Tokens
from stepvar.models.var.transformer import VARTransformer
from stepvar.models.vector_quantizer import VectorQuantizer, map_tokens
from stepvar.pruning.base import Branch
from stepvar.pruning.plan import GenerationPlan


class VARSession:
    """Everything that lives as long as one generation; see `stepvar.generation.loop.Session`.

    Args:
        transformer: The model.
        quantizer: The tokenizer's quantiser: turns codes into what a scale adds to the latent.
        classes: [B] int64, one an image.
        guided: Whether every image gets an unconditional copy.
    """

    def __init__(
        self, transformer: VARTransformer, quantizer: VectorQuantizer, classes: Tensor, guided: bool
    ) -> None:
        self.transformer = transformer
        self.quantizer = quantizer
        self.schedule = transformer.schedule
        self.depth = len(transformer.blocks)
        self.images = len(classes)
        self.copies = 2 if guided else 1
        if guided:
            classes = torch.cat([classes, torch.full_like(classes, transformer.unconditional_class)])
        self.condition = transformer.embed_classes(classes.to(self.device))
        self.modulations = transformer.modulations(self.condition)
        self.head_modulation = transformer.head_modulations(self.condition)
        final = self.schedule.final
        channels = transformer.config.channels
        self.latent = torch.zeros(self.images, channels, final.height, final.width, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.transformer.class_embedding.weight.device

    def allocate_cache(self, plan: GenerationPlan) -> KVCache:
        config = self.transformer.config
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
        if scale.index == 0:
            return self.transformer.embed_start(self.condition[:rows], scale), Tokens(scale)
        hidden = self.transformer.embed_tokens(self.next_input(scale), scale)
        return hidden.repeat(rows // self.images, 1, 1), Tokens(scale)

    def next_input(self, scale: Scale) -> Tensor:
        """Accumulated codes at a scale's token grid: [B, N, D]."""
        return map_tokens(self.latent, (scale.height, scale.width))

    def branches(self, layer: int, memory: Memory, rows: int) -> Sequence[tuple[str, Branch]]:
        block, modulation = self.transformer.blocks[layer], self.modulations[layer]
        if rows < self.images * self.copies:
            modulation = tuple(part[:rows] for part in modulation)
        return (
            ("self_attention", lambda hidden, tokens: block.attend_self(hidden, modulation, memory)),
            ("feed_forward", lambda hidden, tokens: block.feed(hidden, modulation)),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        scale, shift = (part[: hidden.shape[0]] for part in self.head_modulation)
        return self.transformer.logits(hidden, (scale, shift))

    def commit(self, scale: Scale, choice: CodebookChoice, hidden: Tensor, tokens: Tokens) -> None:
        """Adds the codes [B, N, D] of a choice to the latent."""
        self.latent = self.quantizer.add(self.latent, choice.codes, scale, len(self.schedule))
