"""The contract between the generation loop and a pruning method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.pruning.plan import GenerationPlan, ScalePlan

Branch = Callable[[Tensor, Tokens], Tensor]
"""A residual branch: hidden states [R, N, C] and their tokens -> what is added, [R, N, C]."""


class Pruner:
    """A method at work on one generation; this base class is the dense run.

    The loop calls `begin_scale`, then per layer `enter` and `residual`, then `leave`. A method
    overrides what it changes. Nothing outlives the generation.

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
