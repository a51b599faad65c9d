"""Known tokens: a method around any other one that puts a picture's own values where an edit draws nothing.

Known values are computed anew at every scale from what the picture's features have more than the latent as it
is then. With everything known these are the encoder's own values. Once free tokens have drawn something else,
interpolation carries it across the border; stored values would add to that, recomputed ones undo it.

At late scales only a region runs: the free tokens, and known ones near them. Known tokens that do not run
need no recovery, since their values are known.

Shapes: B pictures, N tokens of a scale, c of them in the region.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepvar.generation.plan import GenerationPlan, ScalePlan
from stepvar.generation.pruner import (
    Expect,
    NestedPruner,
    Pruner,
    PruningMethod,
    plan_generation,
    start_pruner,
)
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Choice, Tokens, gather_tokens, merge_choice
from stepvar.pruning.interpolation import anchor_positions

KnownValues = Callable[[Tensor, Scale], Choice]
"""Quantises what is left over at the latent grid, [B, d, H, W], as a scale does: a choice [B, N, ...]."""


@dataclass(frozen=True, eq=False)
class SourceFeatures:
    """What a picture is, for its known tokens.

    Attributes:
        features: [B, d, H, W] of the encoder, float32.
        known_values: The model's quantiser, one scale.
    """

    features: Tensor
    known_values: KnownValues


@dataclass(frozen=True, eq=False)
class KnownTokens:
    """Puts known values at known tokens, around another method.

    Attributes:
        free: Per scale, bool [B, N]: tokens that are drawn.
        regions: Per scale, int64 [B, c]: the only tokens that run, of which the other method may prune some;
            None where all run, as they do everywhere under a method that needs whole scales.
        inner: The other method; None for none. Its counts are shares of the region.
        source: What the known tokens are; needed to run, not to plan.
    """

    free: tuple[Tensor, ...]
    regions: tuple[Tensor | None, ...]
    inner: PruningMethod | None = None
    source: SourceFeatures | None = field(default=None, repr=False)

    def settings(self) -> dict[str, Any]:
        """What is written down of it: the other method."""
        return {"pruning": self.inner}

    def inner_plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """What the other method runs of the regions."""
        plan = plan_generation(self.inner, schedule, depth)
        anchors = getattr(self.inner, "anchor_stride", None)
        entries = []
        for entry, region in zip(plan.scales, self.regions, strict=True):
            entries.append(entry if region is None else _within(entry, region.shape[1], depth, anchors))
        return replace(plan, scales=tuple(entries))

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """The other method's plan within the regions, which are narrowed to before the first layer."""
        inner = self.inner_plan(schedule, depth)
        entries = []
        for entry, region in zip(inner.scales, self.regions, strict=True):
            if region is None or entry.skipped:
                entries.append(entry)
                continue
            count = region.shape[1]
            steps = entry.stages or ((entry.first_layer, entry.kept),)
            # The other method's dense layers at the end run on the region too.
            stages = dict([(0, count), *steps, (entry.last_layer, count)])
            entries.append(
                replace(entry, first_layer=0, last_layer=depth, stages=tuple(sorted(stages.items())))
            )
        return replace(inner, scales=tuple(entries))

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        assert self.source is not None, "an edit runs with its picture"
        schedule = ScaleSchedule(tuple(entry.scale for entry in plan.scales))
        own = self.inner_plan(schedule, plan.depth)
        return KnownTokensPruner(self, plan, own, start_pruner(self.inner, own, device), device)


def _within(entry: ScalePlan, count: int, depth: int, anchors: int | None) -> ScalePlan:
    """A scale's plan for `count` of its tokens: the same shares of them."""
    if entry.skipped:
        return entry
    if not entry.prunes:
        return replace(entry, kept=count, first_layer=0, last_layer=depth, stages=())
    tokens = entry.scale.tokens
    # Anchors must all be kept; they are in the region.
    least = 1 if anchors is None else min(len(anchor_positions(entry.scale.grid, anchors)), count)

    def share(kept: int) -> int:
        return max(-(-kept * count // tokens), least)

    stages = tuple((layer, share(kept)) for layer, kept in entry.stages)
    return replace(entry, kept=share(entry.kept), stages=stages)


class KnownTokensPruner(NestedPruner):
    """Narrows to the region before the first layer, and settles known values; the rest is the inner method's.

    Args:
        config: What is free, and what runs.
        plan: What both will run together.
        own: The inner method's plan.
        inner: The inner method at work.
        device: Where the loop runs.
    """

    def __init__(
        self,
        config: KnownTokens,
        plan: GenerationPlan,
        own: GenerationPlan,
        inner: Pruner,
        device: torch.device,
    ) -> None:
        super().__init__(plan, inner)
        assert config.source is not None
        self.source, self.own = config.source, own
        self.free = [mask.to(device) for mask in config.free]
        self.regions = [None if region is None else region.to(device) for region in config.regions]

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.scale, self.images, self.latent = entry.scale, images, latent
        self.region: Tensor | None = None
        self.inner.begin_scale(self.own[entry.scale.index], images, latent)

    @property
    def kept_index(self) -> Tensor | None:
        found = self.inner.kept_index
        return self.regions[self.scale.index] if found is None else found

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        region = self.regions[self.scale.index]
        if layer == 0 and region is not None:
            self.region = rows = region.repeat(len(hidden) // self.images, 1)
            tokens, hidden = tokens.narrow(rows), gather_tokens(hidden, rows)
        return self.inner.enter(layer, tokens, hidden)

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        hidden = self.inner.leave(tokens, hidden)
        if self.region is None:
            return hidden
        rows, _, channels = hidden.shape
        # Zeros: what is drawn there is not used.
        dense = hidden.new_zeros(rows, self.scale.tokens, channels)
        return dense.scatter_(1, self.region[..., None].expand(-1, -1, channels), hidden)

    def settle(self, tokens: Tokens, choice: Choice, expect: Expect) -> Choice:
        drawn = self.inner.settle(tokens, choice, expect)
        known = self.source.known_values(self.source.features - self.latent, self.scale)
        return merge_choice(self.free[self.scale.index], drawn, known)


def around(method: PruningMethod | None, known: KnownTokens) -> PruningMethod:
    """A method with known tokens in it.

    A method that nests another one in its field `pruning`, as `ScaleKV` and `SkipVAR` do, stays outside: what
    it plans follows from all that runs.
    """
    if method is not None and is_dataclass(method) and hasattr(method, "pruning"):
        return replace(method, pruning=around(method.pruning, known))  # type: ignore[type-var]
    if getattr(method, "needs_whole_scales", False):
        known = replace(known, regions=(None,) * len(known.regions))
    return replace(known, inner=method)
