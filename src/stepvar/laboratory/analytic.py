"""What published models cost by scale, from their sizes and schedules alone (figure 1a)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stepvar.generation.report import ScaleCost
from stepvar.generation.schedule import ScaleSchedule
from stepvar.pruning.base import PruningMethod
from stepvar.pruning.plan import GenerationPlan

TEXT_TOKENS = 32


@dataclass(frozen=True)
class ModelCost:
    """One published model.

    Attributes:
        name: With its picture size.
        scales: Names of its scales.
        dense, pruned: FLOPs of every scale, dense and with the paper's plan for it.
        plan: That plan, in words.
    """

    name: str
    scales: list[str]
    dense: list[int]
    pruned: list[int]
    plan: str

    @property
    def late_share(self) -> float:
        """Share of the FLOPs in the last four scales."""
        return sum(self.dense[-4:]) / sum(self.dense)

    @property
    def saving(self) -> float:
        """Dense FLOPs over the pruned ones."""
        return sum(self.dense) / sum(self.pruned)


def published_costs(plan: PruningMethod, words: str) -> list[ModelCost]:
    """Infinity's published sizes at one megapixel, with a plan; nothing is run or allocated."""
    return [_infinity(size, plan, words) for size in ("2B", "8B")]


def _infinity(size: str, method: PruningMethod, words: str) -> ModelCost:
    from stepvar.models.infinity.cost import scale_costs
    from stepvar.models.infinity.transformer import InfinityTransformer

    with torch.device("meta"):
        transformer = InfinityTransformer.published(size)
    schedule = transformer.size_table.at_aspect(1.0, "1M")
    depth = len(transformer.blocks)
    rows = [2] * len(schedule)

    def costs(plan: GenerationPlan) -> list[int]:
        found: tuple[ScaleCost, ...] = scale_costs(transformer, plan, rows, TEXT_TOKENS)
        return [cost.flops for cost in found]

    return ModelCost(
        f"Infinity-{size}, 1024 x 1024",
        [str(scale) for scale in schedule],
        costs(GenerationPlan.dense(ScaleSchedule(tuple(schedule)), depth)),
        costs(method.plan(schedule, depth)),
        words,
    )
