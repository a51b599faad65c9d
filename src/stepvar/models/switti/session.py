"""Session of Switti, one batch of prompts: what is computed once, and the accumulated codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.generation.cache import Cache, Memory, NoCache
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import Branch
from stepvar.generation.schedule import Scale
from stepvar.generation.tokens import Tokens, row_count
from stepvar.models.common.codebook_session import CodebookSession
from stepvar.models.common.layers import padding_mask
from stepvar.models.common.vector_quantizer import VectorQuantizer
from stepvar.models.switti.transformer import SwittiTransformer


@dataclass(frozen=True)
class TextFeatures:
    """What both text encoders make of prompts, without padding.

    Attributes:
        tokens: One [T_i, E] a prompt.
        pooled: [prompts, P], of the second encoder.
    """

    tokens: tuple[Tensor, ...]
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, prompts: slice) -> TextFeatures:
        return TextFeatures(self.tokens[prompts], self.pooled[prompts])

    def repeated(self, times: int) -> TextFeatures:
        """Every prompt several times in a row."""
        tokens = tuple(text for text in self.tokens for _ in range(times))
        return TextFeatures(tokens, self.pooled.repeat_interleave(times, dim=0))


class SwittiSession(CodebookSession):
    """Everything that lives as long as one generation; see `CodebookSession`.

    Args:
        transformer: The model.
        quantizer: Of the visual tokenizer.
        positive: Text of every image.
        negative: Text of every image's unconditional copy; None when nothing is guided.
        device: Where it runs; by default where the transformer is.
    """

    def __init__(
        self,
        transformer: SwittiTransformer,
        quantizer: VectorQuantizer,
        positive: TextFeatures,
        negative: TextFeatures | None,
        device: torch.device | None = None,
    ) -> None:
        channels, copies = transformer.config.channels, 1 if negative is None else 2
        super().__init__(
            transformer, quantizer, transformer.schedule, channels, len(positive), copies, device
        )
        self._prepare_text([positive] if negative is None else [positive, negative])

    def _prepare_text(self, sides: Sequence[TextFeatures]) -> None:
        """Text keys and values, condition and modulations: once for all scales."""
        model = self.transformer
        tokens = [text.to(self.device) for side in sides for text in side.tokens]
        lengths = [len(text) for text in tokens]
        padded = pad_sequence(tokens, batch_first=True)
        self.mask = padding_mask(lengths, padded.shape[1], self.device)
        self.text = [block.project_text(padded, self.dtype) for block in model.blocks]
        self.condition = model.embed_condition(torch.cat([side.pooled for side in sides]).to(self.device))
        crop = model.embed_crop()
        self.modulations = [block.modulations(self.condition, crop, self.dtype) for block in model.blocks]
        self.head_modulation = model.head_modulations(self.condition)

    def allocate_cache(self, plan: GenerationPlan) -> Cache:
        return super().allocate_cache(plan) if self.transformer.config.causal else NoCache()

    def embed(self, scale: Scale, rows: slice) -> tuple[Tensor, Tokens]:
        tokens = Tokens(scale, self.transformer.rotary(scale, self.device))
        if scale.index == 0:
            return self.transformer.embed_start(self.condition[rows], scale), tokens
        hidden = self.transformer.embed_tokens(self.next_input(scale), scale)
        return hidden.repeat(row_count(rows) // self.images, 1, 1), tokens

    def branches(self, layer: int, memory: Memory, rows: slice) -> Sequence[tuple[str, Branch]]:
        block, modulation = self.transformer.blocks[layer], self.modulations[layer]
        (key, value), mask, dtype = self.text[layer], self.mask, self.dtype
        if row_count(rows) < self.images * self.copies:
            modulation = modulation.of_rows(rows)
            key, value, mask = key[rows], value[rows], None if mask is None else mask[rows]
        return (
            (
                "self_attention",
                lambda hidden, tokens: block.attend_self(hidden, tokens, modulation, memory, dtype),
            ),
            ("cross_attention", lambda hidden, tokens: block.attend_text(hidden, key, value, mask)),
            ("feed_forward", lambda hidden, tokens: block.feed(hidden, modulation, dtype)),
        )
