"""Session of models whose tokens are codes of a codebook, the part that VAR, HART and Switti share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stepvar.generation.cache import Cache, KVCache
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.sampling import CodebookChoice
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.models.common.vector_quantizer import VectorQuantizer, map_tokens


class CodebookSession:
    """Accumulated codes, cache and head of one generation; see `stepvar.generation.loop.Session`.

    A model's own embeds a scale, gives the branches of a layer, and sets `head_modulation` for all rows.

    Args:
        transformer: The model.
        quantizer: The tokenizer's quantiser: turns codes into what a scale adds to the latent.
        schedule: The scales.
        channels: D, of a code.
        images: B.
        copies: 2 when every image has an unconditional copy, else 1.
        device: Where it runs; by default where the transformer is.
    """

    head_modulation: tuple[Tensor, Tensor]
    besides = 0
    """Tokens that a layer remembers besides those of the maps."""

    def __init__(
        self,
        transformer: Any,
        quantizer: VectorQuantizer,
        schedule: ScaleSchedule,
        channels: int,
        images: int,
        copies: int,
        device: torch.device | None = None,
    ) -> None:
        self.transformer, self.quantizer = transformer, quantizer
        self.device: torch.device = device or transformer.device
        self.dtype: torch.dtype = transformer.compute_dtype
        self.schedule, self.depth = schedule, len(transformer.blocks)
        self.images, self.copies = images, copies
        grid = (schedule.final.height, schedule.final.width)
        self.latent = torch.zeros(images, channels, *grid, dtype=torch.float32, device=self.device)

    def allocate_cache(self, plan: GenerationPlan) -> Cache:
        config = self.transformer.config
        lengths = [plan.cached_tokens(layer) + self.besides for layer in range(self.depth)]
        rows, head_dim = self.images * self.copies, config.width // config.heads
        return KVCache(lengths, rows, config.heads, head_dim, self.dtype, self.device, plan.int8_cache)

    def prefill(self, cache: Cache) -> None:
        """Nothing: a prompt enters with the first scale, by cross-attention or by modulation."""

    def next_input(self, scale: Scale) -> Tensor:
        """Accumulated codes at a scale's token grid: [B, N, D]."""
        return map_tokens(self.latent, (scale.height, scale.width))

    def logits(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        scale, shift = (part[rows or slice(len(hidden))] for part in self.head_modulation)
        return self.transformer.logits(hidden, (scale, shift))

    def commit(self, scale: Scale, choice: CodebookChoice, hidden: Tensor, tokens: Tokens) -> None:
        """Adds the codes [B, N, D] of a choice to the latent."""
        self.latent = self.quantizer.add(self.latent, choice.codes, scale, len(self.schedule))
