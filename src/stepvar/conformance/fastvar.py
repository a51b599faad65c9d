"""FastVAR on golden cases: the fork's fixed settings, and a view of what it chose and cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.pruning.fastvar import FastVAR, FastVARPruner
from stepvar.pruning.scores import distance_to_mean

Watcher = Callable[[str, int, int, str, Tensor], None]
"""Called with ("kept", "scores" or "cache"), the scale's index, the layer, the branch and the tensor."""

INFINITY_RATIOS = {32: 0.4, 40: 0.5}
"""By width of the map, as the fork tells scales apart."""

HART_RATIOS = {48: 0.5, 64: 0.75}
"""By side of the map, which HART's fork takes from the number of tokens."""

HART_CACHE_TOKENS = 36 * 36

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
    first, last = INFINITY_LAYERS
    ratios = {} if first >= depth else _ratios(schedule, INFINITY_RATIOS)
    skip = tuple(_name(scale, schedule) for scale in schedule if scale.width in INFINITY_SKIPPED)
    if not ratios and not skip:
        return None
    return WatchedFastVAR(
        ratios=ratios,
        skip=skip,
        first_layer=first if ratios else 0,
        dense_end=max(depth - last, 0),
        cache_scale=_last_of(schedule, INFINITY_CACHE_TOKENS),
        watcher=watcher,
    )


def hart_fork(schedule: ScaleSchedule, watcher: Watcher) -> FastVAR | None:
    """What the fork of HART does on a schedule; None where it prunes nothing."""
    ratios = _ratios(schedule, HART_RATIOS)
    if not ratios:
        return None
    return WatchedFastVAR(
        ratios=ratios,
        first_layer=0,
        dense_end=0,
        cache_scale=_last_of(schedule, HART_CACHE_TOKENS),
        watcher=watcher,
    )


def _name(scale: Scale, schedule: ScaleSchedule) -> int:
    """A scale's name, counted from the end: heights may occur twice."""
    return scale.index - len(schedule)


def _ratios(schedule: ScaleSchedule, by_width: Mapping[int, float]) -> dict[int, float]:
    return {_name(scale, schedule): by_width[scale.width] for scale in schedule if scale.width in by_width}


def _last_of(schedule: ScaleSchedule, tokens: int) -> int | None:
    """Name of the last scale with so many tokens."""
    return next((_name(scale, schedule) for scale in reversed(schedule) if scale.tokens == tokens), None)
