"""8-bit keys and values: less memory for the KV cache, beside any other method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from stepvar.generation.fields import require_fields
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import Pruner, PruningMethod, plan_generation, start_pruner
from stepvar.generation.schedule import ScaleSchedule


@dataclass(frozen=True)
class Int8Cache:
    """Holds keys and values as 8-bit integers between two scales; see `stepvar.generation.int8_cache`.

    It saves memory, not time: a layer's keys and values are expanded before each attention.

    Attributes:
        pruning: A method to prune tokens with besides; None for none.

    Raises:
        ValueError: When planned with a method that cuts the cache itself.
    """

    pruning: PruningMethod | None = None

    def __post_init__(self) -> None:
        require_fields(self)

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """The plan of `pruning`, with a cache of another format."""
        plan = plan_generation(self.pruning, schedule, depth)
        if plan.retained:
            raise ValueError(
                f"{type(self.pruning).__name__} cuts keys and values itself, which Int8Cache rounds: use one "
                "of the two."
            )
        return replace(plan, int8_cache=True)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        """The inner method, for which nothing changes."""
        return start_pruner(self.pruning, plan, device)
