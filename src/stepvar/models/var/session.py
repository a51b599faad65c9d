"""Session of VAR, one batch of classes: what is computed once, and the accumulated codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.generation.cache import Memory
from stepvar.generation.pruner import Branch
from stepvar.generation.schedule import Scale
from stepvar.generation.tokens import Tokens, row_count
from stepvar.models.common.codebook_session import CodebookSession
from stepvar.models.common.vector_quantizer import VectorQuantizer
from stepvar.models.var.transformer import VARTransformer


class VARSession(CodebookSession):
    """Everything that lives as long as one generation; see `CodebookSession`.

    Args:
        transformer: The model.
        quantizer: Of the visual tokenizer.
        classes: [B] int64, one an image.
        guided: Whether every image gets an unconditional copy.
        device: Where it runs; by default where the transformer is.
    """

    def __init__(
        self,
        transformer: VARTransformer,
        quantizer: VectorQuantizer,
        classes: Tensor,
        guided: bool,
        device: torch.device | None = None,
    ) -> None:
        channels, copies = transformer.config.channels, 2 if guided else 1
        super().__init__(transformer, quantizer, transformer.schedule, channels, len(classes), copies, device)
        if guided:
            classes = torch.cat([classes, torch.full_like(classes, transformer.unconditional_class)])
        self.condition = transformer.embed_classes(classes.to(self.device))
        self.modulations = transformer.modulations(self.condition)
        self.constants = [block.self_attention.constants() for block in transformer.blocks]
        self.head_modulation = transformer.head_modulations(self.condition)

    def embed(self, scale: Scale, rows: slice) -> tuple[Tensor, Tokens]:
        if scale.index == 0:
            return self.transformer.embed_start(self.condition[rows], scale), Tokens(scale)
        hidden = self.transformer.embed_tokens(self.next_input(scale), scale)
        return hidden.repeat(row_count(rows) // self.images, 1, 1), Tokens(scale)

    def branches(self, layer: int, memory: Memory, rows: slice) -> Sequence[tuple[str, Branch]]:
        block, modulation = self.transformer.blocks[layer], self.modulations[layer]
        constants, dtype = self.constants[layer], self.dtype
        if row_count(rows) < self.images * self.copies:
            modulation = modulation.of_rows(rows)
        return (
            (
                "self_attention",
                lambda hidden, tokens: block.attend_self(hidden, modulation, memory, constants, dtype),
            ),
            ("feed_forward", lambda hidden, tokens: block.feed(hidden, modulation, dtype)),
        )
