"""The contract between the generation loop and a pruning method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stepvar.generation.cache import Cache
from stepvar.generation.fields import require_fields
from stepvar.generation.frozen import FrozenMapping
from stepvar.generation.guidance import CONDITIONAL, COPIES
from stepvar.generation.plan import GenerationPlan, ScalePlan, find_scale, resolve_plan
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Choice, Tokens

Branch = Callable[[Tensor, Tokens], Tensor]
"""A residual branch: hidden states [R, N, C] and their tokens -> what is added, [R, N, C]."""


Expect = Callable[[], Choice]
"""Returns the mean of what a scale's values could be drawn as, in a form that the session commits."""

Preview = Callable[[Tensor], Tensor]
"""Draws accumulated codes [B, d, (t,) h, w], of any size, as pixels in -1..1."""


@dataclass(frozen=True)
class Limits:
    """Where each picture of a batch ends early; entries are indices of scales, one an image.

    Attributes:
        stop: First scale that is no longer run.
        unguided: First scale without classifier-free guidance.
    """

    stop: tuple[int, ...]
    unguided: tuple[int, ...]

    @classmethod
    def planned(cls, plan: GenerationPlan, images: int) -> Limits:
        """Those of a plan: every scale may run."""
        end = len(plan.scales)
        return cls((end,) * images, (end if plan.unguided is None else plan.unguided,) * images)

    def ended_after(self, scale: int) -> Limits:
        """No image runs any scale after this one."""
        return replace(self, stop=tuple(min(stop, scale + 1) for stop in self.stop))

    def running(self, scale: int) -> list[bool]:
        """Which images still run at a scale."""
        return [scale < stop for stop in self.stop]

    @property
    def guided_until(self) -> tuple[int, ...]:
        """First scale without guidance: a picture that has ended needs none."""
        return tuple(map(min, self.stop, self.unguided))

    def of(self, entry: ScalePlan) -> ScalePlan:
        """A scale's plan, skipped where no image runs it any more."""
        return entry if any(self.running(entry.scale.index)) else replace(entry, skipped=True, kept=0)


class Pruner:
    """A method at work on one generation; this base class is the dense run.

    Tokens may already be narrowed by a method around this one: they then have an index, and `leave` returns
    the hidden states of these tokens.

    The loop calls `attach` once; for every scale `decide` and, where it runs, `begin_scale`, per layer
    `enter` and `residual`, then `leave`, and `settle` once the scale is sampled. A method overrides what it
    changes. Nothing outlives the generation.

    Args:
        plan: What will run.
    """

    def __init__(self, plan: GenerationPlan) -> None:
        self.plan = plan

    def attach(self, cache: Cache) -> Cache:
        """Before the first scale: the cache to use, the one given or another around its buffers."""
        return cache

    def decide(self, scale: Scale, latent: Tensor, preview: Preview | None) -> Limits | None:
        """Before a scale, run or skipped: ends pictures early, having seen them so far.

        Args:
            latent: [B, d, (t,) H, W] codes accumulated so far.
            preview: Draws codes as pixels; None where a model cannot.

        Returns:
            New limits, or None to leave them as they are. Only what comes later may be limited.
        """
        return None

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        """A scale starts.

        Args:
            entry: Its plan.
            images: B; rows 0 to B - 1 of the hidden states are the conditional copies, or the remaining ones
                where guidance was dropped.
            latent: [B, d, (t,) H, W] codes accumulated so far.
        """

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        """Before a layer: may narrow the tokens and their hidden states [R, N, C]."""
        return tokens, hidden

    def residual(self, layer: int, name: str, branch: Branch, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Runs one residual branch of a layer and adds it."""
        return hidden + branch(hidden, tokens)

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        """After the last layer: returns hidden states of all tokens that entered the first one, [R, N, C]."""
        return hidden

    def settle(self, tokens: Tokens, choice: Choice, expect: Expect) -> Choice:
        """After sampling: the values that enter the picture.

        Args:
            choice: What the sampler drew.
            expect: Returns the mean of what it draws.
        """
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
class LateScalePruning:
    """Base of the methods that prune tokens: which scales to prune, and which to leave out.

    Scales are named by their height in tokens (`24`), or from the end (`-1` is the last).

    Attributes:
        ratios: Share of tokens to prune, by scale. A ratio of 1 skips.
        skip: Scales not run at all: the largest gain, and what they would have drawn is missing.
        unguided: First scale without classifier-free guidance: from there on only one copy of each image
            is computed, half of the work. None keeps guidance to the end.
        remaining: Which copy that is: the "conditional" one, or the "unconditional" one, which does not know
            the prompt and adds detail to what is there.

    Raises:
        ValueError: When a field is out of range.
    """

    ratios: Mapping[int, float] = field(default_factory=dict)
    skip: tuple[int, ...] = ()
    unguided: int | None = None
    remaining: str = CONDITIONAL

    def __post_init__(self) -> None:
        require_fields(self)
        # Copies: what the caller does to theirs later must not change a frozen configuration.
        object.__setattr__(self, "ratios", FrozenMapping(self.ratios))
        object.__setattr__(self, "skip", tuple(self.skip))
        for name, ratio in self.ratios.items():
            if not 0.0 <= ratio <= 1.0:
                raise ValueError(f"The pruning ratio of scale {name} is {ratio:g}; it must lie in 0..1.")
        if self.remaining not in COPIES:
            raise ValueError(
                f"Unknown copies {self.remaining!r} in remaining; known are {', '.join(COPIES)}."
            )
        if self.remaining != CONDITIONAL and self.unguided is None:
            raise ValueError(
                f"remaining={self.remaining!r} says what goes on without guidance, and guidance stays: name "
                "the first scale without it, unguided=-3 for example."
            )

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """See `PruningMethod.plan`."""
        raise NotImplementedError

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        """See `PruningMethod.start`."""
        raise NotImplementedError

    def resolve(
        self,
        schedule: ScaleSchedule,
        depth: int,
        first_layer: int,
        last_layer: int,
        ratios: Mapping[int, float] | None = None,
    ) -> GenerationPlan:
        """The plan that prunes layers first_layer to last_layer - 1; see `resolve_plan`.

        Args:
            ratios: By default the method's.

        Raises:
            ValueError: When there are no such layers, or no such plan.
        """
        if not 0 <= first_layer < depth:
            raise ValueError(f"first_layer is {first_layer}; a model of {depth} layers has 0 to {depth - 1}.")
        plan = resolve_plan(
            schedule, depth, self.ratios if ratios is None else ratios, self.skip, first_layer, last_layer
        )
        if self.unguided is None:
            return plan
        index = find_scale(schedule, self.unguided)
        if index == 0:
            raise ValueError("unguided names the first scale: draw without guidance instead, by weight 1.")
        return replace(plan, unguided=index, remaining=self.remaining)


def plan_generation(method: PruningMethod | None, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
    """What a method will run on a schedule; everything when there is no method."""
    return GenerationPlan.dense(schedule, depth) if method is None else method.plan(schedule, depth)


def start_pruner(method: PruningMethod | None, plan: GenerationPlan, device: torch.device) -> Pruner:
    """Starts a method for one generation; the dense run when there is no method."""
    return Pruner(plan) if method is None else method.start(plan, device)


class NestedPruner(Pruner):
    """A method around another one, which it leaves at work; overrides what it adds.

    Args:
        plan: What both will run together.
        inner: The other one.
    """

    def __init__(self, plan: GenerationPlan, inner: Pruner) -> None:
        super().__init__(plan)
        self.inner = inner

    def attach(self, cache: Cache) -> Cache:
        return self.inner.attach(cache)

    def decide(self, scale: Scale, latent: Tensor, preview: Preview | None) -> Limits | None:
        return self.inner.decide(scale, latent, preview)

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.inner.begin_scale(entry, images, latent)

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        return self.inner.enter(layer, tokens, hidden)

    def residual(self, layer: int, name: str, branch: Branch, tokens: Tokens, hidden: Tensor) -> Tensor:
        return self.inner.residual(layer, name, branch, tokens, hidden)

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        return self.inner.leave(tokens, hidden)

    def settle(self, tokens: Tokens, choice: Choice, expect: Expect) -> Choice:
        return self.inner.settle(tokens, choice, expect)

    @property
    def kept_index(self) -> Tensor | None:
        return self.inner.kept_index
