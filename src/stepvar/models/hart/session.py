"""Session of HART, one batch of prompts: what is computed once, and the accumulated codes.

The last scale is unlike the others. Its codes are added as they are, neither enlarged nor refined, and the
diffusion head draws, token by token, what the codes leave over.

After pruning, most positions of the last scale have copied hidden states. Every position still draws a code
of its own, and by default a residual of its own too: given a hidden state, code and residual are drawn from
one distribution, so that the copies are independent draws of what their kept neighbour could have become.
A residual copied from the neighbour would belong to the neighbour's code, and copying both would repeat one
value over a whole patch. `ResidualDraw.everywhere` may be turned off: recovered positions then keep their
bare code, which saves most of the head's time. docs/hart.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.cache import Memory
from stepvar.generation.pruner import Branch
from stepvar.generation.sampling import CodebookChoice
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens, gather_tokens, row_count
from stepvar.models.common.codebook_session import CodebookSession
from stepvar.models.common.vector_quantizer import VectorQuantizer
from stepvar.models.hart.diffusion import DiffusionNoise
from stepvar.models.hart.text import ContextFeatures
from stepvar.models.hart.transformer import HARTTransformer, pool_largest, pool_mean


@dataclass(frozen=True)
class ResidualDraw:
    """How the diffusion head draws.

    Attributes:
        noise: Random numbers of every position of the last map: initial [B, N, D], steps [S, B, N, D].
        guidance: g of (1 + g) x conditional - g x unconditional.
        everywhere: Whether positions with recovered hidden states get a residual too.
    """

    noise: DiffusionNoise
    guidance: float
    everywhere: bool = True


def draw_residual_noise(
    generators: Sequence[torch.Generator], tokens: int, channels: int, steps: int, device: torch.device
) -> DiffusionNoise:
    """Normal random numbers of every image from its own generator: [B, N, D], and [S, B, N, D]."""
    drawn = [
        torch.randn(
            steps + 1, tokens, channels, generator=generator, dtype=torch.float32, device=generator.device
        ).to(device)
        for generator in generators
    ]
    noise = torch.stack(drawn, dim=1)
    return DiffusionNoise(noise[0], noise[1:])


class HARTSession(CodebookSession):
    """Everything that lives as long as one generation; see `CodebookSession`.

    Args:
        transformer: The model.
        quantizer: Of the visual tokenizer.
        condition: Prompts of every row, conditional rows first.
        images: B.
        schedule: The scales; the last map may be drawn in several parts.
        residual: How residuals are drawn; None leaves them out.
        orders: [B, N] in which order the positions of a map in parts are drawn, the last ones first.
        device: Where it runs; by default where the transformer is.
    """

    def __init__(
        self,
        transformer: HARTTransformer,
        quantizer: VectorQuantizer,
        condition: ContextFeatures,
        images: int,
        schedule: ScaleSchedule,
        residual: ResidualDraw | None = None,
        orders: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        channels, copies = transformer.config.latent_channels, len(condition) // images
        super().__init__(transformer, quantizer, schedule, channels, images, copies, device)
        self.residual = residual
        self.parts = part_places(schedule, orders)
        self.levels = len(schedule) - max(len(self.parts) - 1, 0)
        self._prepare(condition.to(self.device))
        # The first scale's place is taken by all context tokens.
        self.besides = self.context.shape[1] - schedule[0].tokens
        # A map in parts reads the latent as it was before the first of them.
        self.pending = torch.zeros_like(self.latent)

    def _prepare(self, condition: ContextFeatures) -> None:
        """Context tokens, their positions and modulations: once for all scales."""
        model = self.transformer
        self.context = model.embed_context(condition.features)
        self.context_table = model.context_positions(condition.positions)
        self.offsets = condition.positions[:, -1]
        largest = pool_largest(self.context)
        averaged = model.config.modulation == "table" or model.config.pooling == "mean"
        pooled = pool_mean(self.context, condition.mask) if averaged else largest
        self.modulations = [block.modulations(pooled, self.dtype) for block in model.blocks]
        self.constants = [block.attention.constants() for block in model.blocks]
        self.head_modulation = model.head_modulations(largest)

    def level(self, scale: Scale) -> int:
        """Position of a step's map among the maps: the parts of one map share it."""
        return min(scale.index, self.levels - 1)

    def embed(self, scale: Scale, rows: slice) -> tuple[Tensor, Tokens]:
        model = self.transformer
        level = model.level_embedding(self.level(scale), self.device)
        if scale.index == 0:
            return self.context[rows] + level, Tokens(scale, self.context_table[rows])
        hidden = model.embed_codes(self.next_input(scale)) + level
        hidden = hidden.repeat(row_count(rows) // self.images, 1, 1)
        table = model.map_positions(scale, self.schedule.position_grid, self.offsets[rows])
        tokens = Tokens(scale, table)
        if scale.part is None:
            return hidden, tokens
        places = self.places(scale).repeat(row_count(rows) // self.images, 1)
        return gather_tokens(hidden, places), tokens.narrow(places)

    def places(self, scale: Scale) -> Tensor:
        """[B, n] positions that a part of a map draws, ascending."""
        return self.parts[scale.index - self.levels + 1]

    def branches(self, layer: int, memory: Memory, rows: slice) -> Sequence[tuple[str, Branch]]:
        block, constants = self.transformer.blocks[layer], self.constants[layer]
        modulation, dtype = self.modulations[layer], self.dtype
        if modulation is not None:
            modulation = modulation.of_rows(rows)
        return (
            (
                "self_attention",
                lambda hidden, tokens: block.attend(hidden, tokens, modulation, memory, constants, dtype),
            ),
            ("feed_forward", lambda hidden, tokens: block.feed(hidden, modulation, dtype)),
        )

    def commit(self, scale: Scale, choice: CodebookChoice, hidden: Tensor, tokens: Tokens) -> None:
        """Adds codes, and at the last map residuals, to the latent."""
        level = self.level(scale)
        if level + 1 < self.levels:
            self.latent = self.quantizer.add(self.latent, choice.codes, scale, self.levels)
            return
        values = choice.codes.float()
        if self.residual is not None:
            values = values + self._residuals(self.residual, scale, choice, hidden, tokens)
        if scale.part is None:
            self.latent = self.latent + values.transpose(1, 2).unflatten(2, self.latent.shape[-2:])
            return
        places = self.places(scale)[:, None].expand(-1, values.shape[2], -1)
        self.pending.flatten(2).scatter_(2, places, values.transpose(1, 2))
        if scale.index + 1 == len(self.schedule):
            self.latent = self.latent + self.pending

    def _residuals(
        self, draw: ResidualDraw, scale: Scale, choice: CodebookChoice, hidden: Tensor, tokens: Tokens
    ) -> Tensor:
        """What the codes leave over, [B, n, D]."""
        images, count = choice.index.shape
        places = None if scale.part is None else self.places(scale)
        chosen = None
        if scale.part is None and tokens.index is not None and not draw.everywhere:
            chosen = places = tokens.index[:images]
        codes, noise = self.quantizer.lookup(choice.index), draw.noise
        if chosen is not None:
            codes = gather_tokens(codes, chosen)
            hidden = gather_tokens(hidden, chosen.repeat(len(hidden) // images, 1))
        if places is not None:
            steps = torch.stack([gather_tokens(step, places) for step in noise.steps])
            noise = DiffusionNoise(gather_tokens(noise.initial, places), steps)
        condition = self.transformer.residual_condition(hidden, codes.repeat(len(hidden) // images, 1, 1))
        flat = DiffusionNoise(noise.initial.flatten(0, 1), noise.steps.flatten(1, 2))
        drawn = self.transformer.residual_head.sample(
            condition.flatten(0, 1), flat, draw.guidance, self.dtype
        )
        drawn = drawn.unflatten(0, (images, -1))
        if chosen is None:
            return drawn
        everywhere = torch.zeros(images, count, drawn.shape[2], dtype=torch.float32, device=drawn.device)
        return everywhere.scatter_(1, chosen[..., None].expand_as(drawn), drawn)


def part_places(schedule: ScaleSchedule, orders: Tensor | None) -> list[Tensor]:
    """Positions [B, n] that each part of the last map draws, ascending; empty when it is drawn at once."""
    counts = [scale.part for scale in schedule if scale.part is not None]
    if not counts:
        return []
    if orders is None:
        raise ValueError("The last map is drawn in parts, so the order of its positions must be given.")
    remaining, places = orders.shape[1], []
    for count in counts:
        # The positions at the front of the order are left for later parts.
        places.append(orders[:, remaining - count : remaining].sort(dim=1).values)
        remaining -= count
    return places
