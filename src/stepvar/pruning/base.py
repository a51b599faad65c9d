"""The contract between the generation loop and a pruning method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.pruning.plan import GenerationPlan, ScalePlan, resolve_plan

Branch = Callable[[Tensor, Tokens], Tensor]
"""A residual branch: hidden states [R, N, C] and their tokens -> what is added, [R, N, C]."""


class Pruner:
    """A method at work on one generation; this base class is the dense run.

    The loop calls `begin_scale`, then per layer `enter` and `residual`, then `leave`, and `settle` once
    the scale is sampled. A method overrides what it changes. Nothing outlives the generation.

    Args:
        plan: What will run.
    """

    def __init__(self, plan: GenerationPlan) -> None:
        self.plan = plan

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        """A scale starts.

        Args:
            entry: Its plan.
            images: B; rows 0 to B - 1 of the hidden states are the conditional copies.
            latent: [B, d, (t,) H, W] codes accumulated so far.
        """

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        """Before a layer: may narrow the tokens and their hidden states [R, N, C]."""
        return tokens, hidden

    def residual(self, layer: int, name: str, branch: Branch, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Runs one residual branch of a layer and adds it."""
        return hidden + branch(hidden, tokens)

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        """After the last layer: returns hidden states of all N positions, [R, N, C]."""
        return hidden

    def settle(self, tokens: Tokens, choice: Tensor) -> Tensor:
        """After sampling: the values [B, N, ...] that enter the picture."""
        return choice

    @property
    def kept_index(self) -> Tensor | None:
        """[B, K] positions kept at the current scale, None where nothing is pruned."""
        return None


@runtime_checkable
class PruningMethod(Protocol):
    """A frozen configuration that can plan a schedule and start a `Pruner`."""

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """Fixes what will run.

        Raises:
            ValueError: When the request cannot be met on this schedule.
        """
        ...

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        """Starts the method for one generation."""
        ...


@dataclass(frozen=True)
class LateScales:
    """Which scales to prune and which to leave out: what every method that prunes tokens is told.

    Scales are named by their height in tokens (`24`), or from the end (`-1` is the last).

    Attributes:
        ratios: Share of tokens to prune, by scale. A ratio of 1 skips.
        skip: Scales not run at all: the largest gain, and what they would have drawn is missing.

    Raises:
        ValueError: When a ratio is out of range.
    """

    ratios: Mapping[int, float] = field(default_factory=dict)
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Copies of our own: what the caller does to theirs later must not change a frozen configuration.
        object.__setattr__(self, "ratios", dict(self.ratios))
        object.__setattr__(self, "skip", tuple(self.skip))
        for name, ratio in self.ratios.items():
            if not 0.0 <= ratio <= 1.0:
                raise ValueError(f"The pruning ratio of scale {name} is {ratio:g}; it must lie in 0..1.")

    def resolve(
        self, schedule: ScaleSchedule, depth: int, first_layer: int, last_layer: int
    ) -> GenerationPlan:
        """The plan that prunes layers first_layer to last_layer - 1; see `resolve_plan`.

        Raises:
            ValueError: When there are no such layers, or no such plan.
        """
        if not 0 <= first_layer < depth:
            raise ValueError(f"first_layer is {first_layer}; a model of {depth} layers has 0 to {depth - 1}.")
        return resolve_plan(schedule, depth, self.ratios, self.skip, first_layer, last_layer)
