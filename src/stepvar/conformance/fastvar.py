"""FastVAR on golden cases: the fork's fixed settings, and a view of what it chose and cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.schedule import ScaleSchedule
from stepvar.pruning.fastvar import FastVAR, FastVARPruner
from stepvar.pruning.plan import GenerationPlan
from stepvar.pruning.scores import distance_to_mean

Watcher = Callable[[str, int, int, str, Tensor], None]
"""Called with ("kept", "scores" or "cache"), the scale's index, the layer, the branch and the tensor."""

INFINITY_RATIOS = {32: 0.4, 40: 0.5}
"""By width of the map, as the fork tells scales apart."""

HART_RATIOS, HART_CACHE = {48: 0.5, 64: 0.75}, 36
"""By side of the map, which HART's fork takes from the number of tokens; and the side of what fills."""

INFINITY_SKIPPED = (48, 64)
INFINITY_CACHE_TOKENS = 24 * 24
INFINITY_LAYERS = (3, 28)


@dataclass(frozen=True)
class WatchedFastVAR(FastVAR):
    """FastVAR that shows what it chooses and caches.

    Attributes:
        watcher: Sees it.
    """

    watcher: Watcher | None = None

    def start(self, plan: GenerationPlan, device: torch.device) -> FastVARPruner:
        return _WatchedPruner(self, plan)


class _WatchedPruner(FastVARPruner):
    def __init__(self, config: WatchedFastVAR, plan: GenerationPlan) -> None:
        super().__init__(config, plan)
        self.watcher = config.watcher

    def select(self, layer: int, name: str, hidden: Tensor) -> Tensor:
        index = super().select(layer, name, hidden)
        if self.watcher is not None:
            self.watcher("kept", self.entry.scale.index, layer, name, index)
            self.watcher("scores", self.entry.scale.index, layer, name, distance_to_mean(hidden))
        return index

    def store(self, layer: int, name: str, output: Tensor) -> None:
        super().store(layer, name, output)
        if self.watcher is not None:
            self.watcher("cache", self.entry.scale.index, layer, name, output)


def infinity_fork(schedule: ScaleSchedule, depth: int, watcher: Watcher) -> FastVAR | None:
    """What the fork of Infinity does on a schedule; None where it prunes and skips nothing."""
    names = {scale.index: scale.index - len(schedule) for scale in schedule}
    ratios = {
        names[scale.index]: INFINITY_RATIOS[scale.width]
        for scale in schedule
        if scale.width in INFINITY_RATIOS
    }
    skip = tuple(names[scale.index] for scale in schedule if scale.width in INFINITY_SKIPPED)
    if not ratios and not skip:
        return None
    cached = [names[scale.index] for scale in schedule if scale.tokens == INFINITY_CACHE_TOKENS]
    first, last = INFINITY_LAYERS
    return WatchedFastVAR(
        ratios=ratios,
        skip=skip,
        first_layer=first,
        dense_end=max(depth - last, 0),
        cache_scale=cached[-1] if cached else None,
        watcher=watcher,
    )


def hart_fork(schedule: ScaleSchedule, watcher: Watcher) -> FastVAR | None:
    """What the fork of HART does on a schedule; None where it prunes nothing."""
    sides = {scale.height for scale in schedule}
    ratios = {side: ratio for side, ratio in HART_RATIOS.items() if side in sides}
    if not ratios:
        return None
    return WatchedFastVAR(ratios=ratios, first_layer=0, dense_end=0, cache_scale=HART_CACHE, watcher=watcher)
