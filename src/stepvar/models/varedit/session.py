"""VAREdit at work on one batch of pictures and instructions: Infinity behind a source pass.

Source: `autoregressive_infer_cfg` of HiDream-ai/VAREdit, infinity/models/infinity.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.cache import Cache, IsolatedMemory, KVCache, LayerCache
from stepvar.generation.int8_cache import Int8LayerCache
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.varedit.positions import position_table
from stepvar.models.varedit.source_cache import ScaleAlignedCache

SourceProbe = Callable[[str, Tensor], None]
"""Called with "input", "layer 0", "layer 1", ... and hidden states of the source pass."""


class VAREditSession(InfinitySession):
    """Infinity's session with the picture to edit as a prefix; see `stepvar.generation.loop.Session`.

    Args:
        transformer: Infinity's architecture with VAREdit's weights; there is no parameter more.
        condition: Text features of the instructions, every row.
        schedule: The scales.
        source: [B, d, H, W] continuous encoder features of the pictures, on the grid of the last scale.
        template: Schedule of the largest pixel budget at this aspect ratio, whose positions all budgets take.
        patchify: Whether a token stands for 2 x 2 latent positions.
        device: Where it runs; by default where the transformer is.
        source_probe: Sees hidden states of the source pass.
        repeats: Pictures of each instruction, one after the other; their source runs once.

    Raises:
        ValueError: When the source does not fit the schedule or the batch.
    """

    def __init__(
        self,
        transformer: InfinityTransformer,
        condition: TextCondition,
        schedule: ScaleSchedule,
        source: Tensor,
        template: ScaleSchedule,
        patchify: bool = False,
        device: torch.device | None = None,
        source_probe: SourceProbe | None = None,
        repeats: int = 1,
    ) -> None:
        super().__init__(transformer, condition, schedule, patchify, device)
        self.repeats = repeats
        if source.shape != self.latent.shape:
            raise ValueError(
                f"The source features are {list(source.shape)}, but the schedule and the batch need "
                f"{list(self.latent.shape)}."
            )
        self.source_probe = source_probe
        prefix = functional.pixel_unshuffle(source.to(self.device), self.patch)
        self.source_features = prefix.flatten(2).transpose(1, 2)
        head_dim = transformer.config.width // transformer.config.heads
        self.positions = position_table(template, head_dim, self.device)
        self.first_layer: ScaleAlignedCache | None = None

    @property
    def source_tokens(self) -> int:
        """Tokens of the source's map, as many as the last scale has."""
        return self.source_features.shape[1]

    def allocate_cache(self, plan: GenerationPlan) -> KVCache:
        """Room for the source and for the target tokens of the plan.

        The first layer averages keys and values, so it holds them as they are, also where others are rounded.
        """
        config = self.transformer.config
        rows, head_dim = self.images * self.copies, config.width // config.heads
        first, *others = [self.source_tokens + plan.cached_tokens(layer) for layer in range(self.depth)]
        cache = KVCache(others, rows, config.heads, head_dim, self.dtype, self.device, plan.int8_cache)
        room = torch.empty(2, rows, config.heads, first, head_dim, dtype=self.dtype, device=self.device)
        final = self.schedule.final
        self.first_layer = ScaleAlignedCache(room[0], room[1], (final.height, final.width))
        cache.layers.insert(0, self.first_layer)
        # Beside the room for its averages, the source itself.
        kept = 2 * rows * self.source_tokens * config.width
        cache.bytes += (room.numel() + kept) * room.element_size()
        return cache

    def prefill(self, cache: Cache) -> None:
        """Sends the source tokens through all layers, where they see each other and their row's text.

        Pictures of one instruction have the same source and the same text, so one row stands for them.
        """
        rows, final = slice(0, self.images * self.copies, self.repeats), self.schedule.final
        hidden = self.transformer.embed_tokens(self.source_features[:: self.repeats], final)
        self._show_source("input", hidden)
        hidden = hidden.repeat(self.copies, 1, 1)
        tokens = Tokens(final, self.positions[:, : self.source_tokens])
        for layer in range(self.depth):
            memory = cache[layer]
            assert isinstance(memory, (LayerCache, Int8LayerCache))
            memory = IsolatedMemory(memory, self.repeats)
            for _name, branch in self.branches(layer, memory, rows):
                hidden = hidden + branch(hidden, tokens)
            self._show_source(f"layer {layer}", hidden)

    def embed(self, scale: Scale, rows: slice) -> tuple[Tensor, Tokens]:
        hidden, tokens = super().embed(scale, rows)
        if self.first_layer is not None:
            self.first_layer.begin_scale((scale.height, scale.width))
        # Numbers count the whole schedule: skipped scales and dropped tokens do not shift them.
        start = self.source_tokens + sum(earlier.tokens for earlier in self.schedule.scales[: scale.index])
        return hidden, Tokens(tokens.scale, self.positions[:, start : start + scale.tokens])

    def _show_source(self, name: str, hidden: Tensor) -> None:
        if self.source_probe is not None:
            self.source_probe(name, hidden)
