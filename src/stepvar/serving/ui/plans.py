"""Plans on the page: a preset, or a preset changed by one slider for each late scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepvar.generation.plan import find_scale
from stepvar.generation.pruner import LateScalePruning
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.pipeline import NextScalePipeline
from stepvar.pruning.presets import ChangedPreset, Preset, Pruning, with_scales

SLIDERS_ONLY = "sliders"
"""What the page calls a plan that is no preset."""

_MOST_SLIDERS = 4
_PREFERRED = ("best", "paper")


@dataclass(frozen=True)
class LatePlans:
    """The plans of one model, as sliders see them.

    Attributes:
        presets: Those that the model can run at its own size.
        names: Late scales, counted from the end: -4 to -1.
        schedule: The model's own.
    """

    presets: dict[str, Preset]
    names: tuple[int, ...]
    schedule: ScaleSchedule

    @classmethod
    def of(cls, pipeline: NextScalePipeline[Any]) -> LatePlans:
        """Of a model; its presets that mean nothing at its own size are left out."""
        schedule = pipeline.schedule()
        # The first scale carries the prompt and always runs.
        count = min(_MOST_SLIDERS, len(schedule) - 1)
        presets = {name: preset for name, preset in pipeline.presets.items() if _runs(pipeline, name)}
        return cls(presets, tuple(range(-count, 0)), schedule)

    @property
    def usual(self) -> str:
        """The preset that the page begins with."""
        return next((name for name in _PREFERRED if name in self.presets), SLIDERS_ONLY)

    def shares(self, name: str, schedule: ScaleSchedule | None = None) -> list[float] | None:
        """What a preset leaves out of each late scale, in 0..1; None where it is no plan of this kind."""
        if name == SLIDERS_ONLY:
            return [0.0] * len(self.names)
        method = self.presets[name].method
        if not isinstance(method, LateScalePruning):
            return None
        schedule = schedule or self.schedule
        found = {find_scale(schedule, scale): share for scale, share in method.ratios.items()}
        found |= {find_scale(schedule, scale): 1.0 for scale in method.skip}
        return [found.get(len(schedule) + name, 0.0) for name in self.names]

    def plan(self, name: str, shares: Sequence[float], schedule: ScaleSchedule | None = None) -> Pruning:
        """A preset, with other shares where the sliders were moved.

        Raises:
            ValueError: When nothing would be left out.
        """
        own = self.shares(name, schedule)
        if name != SLIDERS_ONLY and (own is None or _same(own, shares)):
            return name
        ratios = {scale: share for scale, share in zip(self.names, shares, strict=True) if 0.0 < share < 1.0}
        skip = tuple(scale for scale, share in zip(self.names, shares, strict=True) if share == 1.0)
        if name == SLIDERS_ONLY:
            if not ratios and not skip:
                raise ValueError("The plan leaves nothing out: move a slider, or take a preset.")
            return with_scales("stepvar", ratios, skip)
        return ChangedPreset(name, {"ratios": {**self._early(name), **ratios}, "skip": skip})

    def _early(self, name: str) -> dict[int, float]:
        """Ratios of a preset's scales that have no slider; they stay."""
        method = self.presets[name].method
        assert isinstance(method, LateScalePruning), "other methods have no ratios"
        return {scale: share for scale, share in method.ratios.items() if scale < min(self.names)}

    def title(self, name: str, shares: Sequence[float]) -> str:
        """A plan in a word or two."""
        own = self.shares(name)
        if name == SLIDERS_ONLY:
            return "own plan"
        return name if own is None or _same(own, shares) else f"{name}, changed"

    def label(self, name: int) -> str:
        """What a slider is called: its scale's place, and its grid at the model's own size."""
        places = {-1: "Last scale", -2: "Last but one", -3: "Third from the end", -4: "Fourth from the end"}
        return f"{places[name]} · {self.schedule[len(self.schedule) + name]}"


def _runs(pipeline: NextScalePipeline[Any], name: str) -> bool:
    try:
        pipeline.summary(name)
    except ValueError:
        return False
    return True


def _same(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(abs(one - other) < 1e-6 for one, other in zip(first, second, strict=True))
