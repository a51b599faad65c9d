"""Recoveries: how the positions of pruned tokens get hidden states again.

A recovery is a class with a decorator; one of your own works in the same way from outside the package:

    @recovery("zero gain")
    class ZeroGain(Recovery):
        def before(self, features: Tensor, grid: Grid) -> Tensor:
            return features

        def after(self, kept: KeptTokens) -> Tensor:
            return scatter_tokens(kept.entry, kept.index, kept.features)

Objects hold settings and no state: one object serves many generations at once.
Shapes: R rows (conditional, then unconditional copies), N tokens, K kept ones, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stepvar.generation.fields import require_fields
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.schedule import Grid
from stepvar.generation.tokens import gather_tokens
from stepvar.generation.weight_sketch import WeightSketch
from stepvar.pruning.calibrated import FittedMap, map_inputs, pruned_positions, require_maps
from stepvar.pruning.guided import BANDWIDTH, RADIUS, guided_gains
from stepvar.pruning.interpolation import (
    area_resized,
    bilinear,
    nearest_anchor,
    nearest_kept,
    scatter_tokens,
)
from stepvar.pruning.rules import Registry

_LARGEST_RADIUS = 64
"""Tokens: its square is the number of neighbours that are looked at, for every token."""


@dataclass(frozen=True)
class KeptTokens:
    """The tokens that ran through the pruned layers, and what a recovery may know of the others.

    Attributes:
        features: [R, K, C] hidden states of the kept tokens after the pruned layers.
        index: [R, K] their positions, row-major in `grid`; all copies of an image keep the same.
        grid: (t, h, w) with t x h x w = N.
        images: B; the first B rows are the conditional copies.
        frame_distance: Distance of two frames, in token sides.
        anchor_stride: Distance of the anchors, where only they are copied; None where any token may be.
        entry: What `before` of the recovery returned; None for one without.
        full_scale: Grid and hidden states [R, M, C], after the last layer, of the last scale that ran in
            full; None unless the recovery needs it.
    """

    features: Tensor
    index: Tensor
    grid: Grid
    images: int
    frame_distance: int = 1
    anchor_stride: int | None = None
    entry: Any = None
    full_scale: tuple[Grid, Tensor] | None = None

    @cached_property
    def sources(self) -> Tensor:
        """[R, N] which kept token, 0..K-1, is nearest to each position; to a kept one itself."""
        index = self.index[: self.images]
        if self.anchor_stride is None:
            found = nearest_kept(index, self.grid, self.frame_distance)
        else:
            found = nearest_anchor(index, self.grid, self.anchor_stride, self.frame_distance)
        return found.repeat(len(self.index) // self.images, 1)


class Recovery:
    """Base of the recoveries; a class of your own may as well just have the same methods.

    A recovery that wants to see all tokens before they are pruned has a method
    `before(features: Tensor, grid: Grid) -> Any`: it gets the hidden states [R, N, C] of all positions before
    each narrowing, and what it returns is handed to `after` as `kept.entry`. One that cannot fill everything
    has a method `check(plan: GenerationPlan) -> None` that raises ValueError, and one that holds tensors a
    method `on(device: torch.device) -> Recovery`, the same on a device, called once a generation. What
    `settings() -> dict` returns is written down of it; by default its fields, where it is a dataclass.

    Attributes:
        needs_full_scale: Whether it reads `KeptTokens.full_scale`; then the first scale that runs cannot be
            pruned.
        needs_anchors: Whether it copies anchors only, which are then always kept.
        copies: Whether a pruned position belongs to one kept token, `KeptTokens.sources`, so that drawn
            values can be copied from there too.
        needs_fit: Whether it has to be fitted to a model first, so that its name alone is not enough.
        fitted_to: The weights that it was fitted to; None where it goes with any.
    """

    needs_full_scale: ClassVar[bool] = False
    needs_anchors: ClassVar[bool] = False
    copies: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = False
    fitted_to: WeightSketch | None = None

    def after(self, kept: KeptTokens) -> Tensor:
        """Hidden states of all positions, [R, N, C]; kept ones should have their own."""
        raise NotImplementedError


def _check_recovery(rule: Any) -> None:
    """Raises ValueError when an object, or a class, is no recovery."""
    if not callable(getattr(rule, "after", None)):
        kind = rule.__name__ if hasattr(rule, "__name__") else type(rule).__name__
        raise ValueError(
            "A recovery is a name or an object with a method after(kept) that returns [R, N, C]; "
            f"this is {kind!r}."
        )


RECOVERIES: Registry[Any] = Registry("recovery", "stepvar.recoveries", _check_recovery)
"""The recoveries by name: classes, or objects."""

recovery = RECOVERIES.register
"""Decorator that gives a recovery its name."""


def ready_recoveries() -> list[str]:
    """Names of the recoveries that work on any model as they are."""
    return [name for name in RECOVERIES if not getattr(RECOVERIES[name], "needs_fit", False)]


def make_recovery(rule: str | Recovery | type[Recovery]) -> Recovery:
    """A recovery by name, by class (with its default settings) or itself.

    Raises:
        ValueError: When there is none of that name, or it is no recovery.
    """
    found: Any = RECOVERIES.find(rule) if isinstance(rule, str) else rule
    _check_recovery(found)
    if not isinstance(found, type):
        return found  # type: ignore[no-any-return]  # its methods were checked
    try:
        made: Recovery = found()
    except TypeError as error:
        raise ValueError(
            f"Recovery {found.__name__} has settings without defaults: pass an object."
        ) from error
    return made


def needs(rule: Recovery, what: Literal["full_scale", "anchors"]) -> bool:
    """Whether a recovery needs the last full scale, or anchors; not, where it has no such attribute."""
    return bool(getattr(rule, f"needs_{what}", False))


@recovery("nearest")
@dataclass(frozen=True)
class Nearest(Recovery):
    """Copies the nearest kept token (StepVAR, eq. 8)."""

    def after(self, kept: KeptTokens) -> Tensor:
        return gather_tokens(kept.features, kept.sources)


@recovery("anchor")
@dataclass(frozen=True)
class Anchor(Nearest):
    """Copies the nearest of a uniform grid of anchors, which are always kept (a baseline of StepVAR)."""

    needs_anchors = True


@recovery("cache")
@dataclass(frozen=True)
class Cache(Recovery):
    """Takes the hidden states of the last scale that ran in full, interpolated by area (FastVAR)."""

    needs_full_scale = True
    copies = False

    def after(self, kept: KeptTokens) -> Tensor:
        if kept.full_scale is None:
            raise RuntimeError("No scale ran in full before the first pruned one, which the plan rules out.")
        grid, features = kept.full_scale
        dense = area_resized(features, grid, kept.grid)
        return scatter_tokens(dense, kept.index, kept.features)


@recovery("bilinear")
@dataclass(frozen=True)
class Bilinear(Recovery):
    """Averages the kept tokens next to a position; copies the nearest where there are none."""

    def after(self, kept: KeptTokens) -> Tensor:
        return bilinear(kept.features, kept.index, kept.sources, kept.grid)


class GainRecovery(Recovery):
    """Base of recoveries that keep a position's own hidden state, and estimate what layers add to it."""

    def before(self, features: Tensor, grid: Grid) -> Tensor:
        return features

    def after(self, kept: KeptTokens) -> Tensor:
        gains = kept.features - gather_tokens(kept.entry, kept.index)
        estimated: Tensor = kept.entry + self.all_gains(kept, gains)
        return estimated

    def all_gains(self, kept: KeptTokens, gains: Tensor) -> Tensor:
        """What the layers add to every position, [R, N, C], from what they added to kept tokens [R, K, C]."""
        raise NotImplementedError


@recovery("update")
@dataclass(frozen=True)
class Update(GainRecovery):
    """Adds what the nearest kept token has gained."""

    def all_gains(self, kept: KeptTokens, gains: Tensor) -> Tensor:
        return gather_tokens(gains, kept.sources)


@recovery("guided")
@dataclass(frozen=True)
class Guided(GainRecovery):
    """Adds what the kept tokens nearby have gained, most of those that it resembled before the layers.

    Attributes:
        radius: Kept tokens within so many rows and columns count.
        bandwidth: Squared difference of two tokens' features at which a weight falls to 1/e, in variances
            of the map.

    Raises:
        ValueError: When a setting is out of range.
    """

    radius: int = RADIUS
    bandwidth: float = BANDWIDTH

    def __post_init__(self) -> None:
        require_fields(self)
        if not 1 <= self.radius <= _LARGEST_RADIUS:
            raise ValueError(f"radius is {self.radius}; it must be 1 to {_LARGEST_RADIUS} tokens.")
        if not self.bandwidth > 0.0:
            raise ValueError(f"bandwidth is {self.bandwidth:g}; it must be above 0.")

    def all_gains(self, kept: KeptTokens, gains: Tensor) -> Tensor:
        return guided_gains(
            kept.entry, gains, kept.index, kept.sources, kept.grid, self.radius, self.bandwidth
        )


@recovery("calibrated")
@dataclass(frozen=True, repr=False)
class Calibrated(GainRecovery):
    """Predicts a position's hidden state by a linear map that was fitted to the model; see `map_inputs`.

    `stepvar calibrate --recovery calibrated` fits it, and stores it with the plan that it is for.

    Attributes:
        maps: One a pruned scale, by grid.
        fitted_to: The weights that they were fitted to; a transformer with others is refused.
        score: Name of the score that chose the kept tokens where they were fitted.

    Raises:
        ValueError: When there are no maps.
    """

    maps: tuple[FittedMap, ...] = ()
    fitted_to: WeightSketch | None = None
    score: str = ""

    needs_fit = True

    def __post_init__(self) -> None:
        if not self.maps:
            raise ValueError(
                "Recovery 'calibrated' has to be fitted to the model: run 'stepvar calibrate --recovery "
                "calibrated -o plan.json', and pass pruning='plan.json'."
            )

    def __repr__(self) -> str:
        return f"Calibrated({', '.join(fitted.name for fitted in self.maps)})"

    @cached_property
    def by_grid(self) -> Mapping[Grid, FittedMap]:
        """The maps."""
        return {fitted.grid: fitted for fitted in self.maps}

    def settings(self) -> dict[str, Any]:
        """What is written into settings: enough to tell two fits from each other, no weights."""
        return {
            "fitted_to": self.fitted_to.digest if self.fitted_to else None,
            "layout": self.fitted_to.layout if self.fitted_to else None,
            "score": self.score,
            "maps": [fitted.settings() for fitted in self.maps],
        }

    def check(self, plan: GenerationPlan) -> None:
        """Raises ValueError when a plan prunes what has no map."""
        require_maps(self.by_grid, plan)

    def on(self, device: torch.device) -> Calibrated:
        """The same with its maps on a device; the last two are kept there."""
        return _calibrated_on(self, device)

    def after(self, kept: KeptTokens) -> Tensor:
        fitted, channels = self.by_grid[kept.grid], kept.features.shape[2]
        if len(fitted.bias) != channels:
            raise ValueError(
                f"The map of scale {fitted.name} is for a width of {len(fitted.bias)}, and this model's is "
                f"{channels}: fit it to this model."
            )
        pruned = pruned_positions(kept.index, kept.sources.shape[1])
        gains = kept.features - gather_tokens(kept.entry, kept.index)
        inputs = map_inputs(kept.entry, gains, kept.index, kept.sources, kept.grid, pruned)
        predicted = inputs @ fitted.weight.to(inputs) + fitted.bias.to(inputs)
        known = scatter_tokens(kept.entry, kept.index, kept.features)
        return scatter_tokens(known, pruned, predicted)


@lru_cache(maxsize=2)
def _calibrated_on(rule: Calibrated, device: torch.device) -> Calibrated:
    maps = tuple(
        replace(fitted, weight=fitted.weight.to(device), bias=fitted.bias.to(device)) for fitted in rule.maps
    )
    return replace(rule, maps=maps)
