"""From a target to a plan: how much to prune for a speed-up, or for a likeness to the dense run.

A plan has one knob: the share pruned of the last scale that runs; the scales before it are pruned by two
thirds and one third of that. Time is very nearly a fixed part plus a part proportional to the transformer's
FLOPs, so a few measured plans tell which FLOPs give the time that is asked for; likeness falls with the share
and is found by halving. Skipping scales is asked for apart, and used only where pruning is not enough.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stepvar.evaluation.fidelity import bounded_psnr
from stepvar.evaluation.statistics import Interval, mean_interval, median_ratio_interval
from stepvar.evaluation.timing import interleaved
from stepvar.presets import with_scales

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.base import LateScales

PROMPT_SEED = 7_000
"""Of the prompts and pictures that a plan is fitted on; evaluations use others."""

SHAPE = (1.0, 2 / 3, 1 / 3)
"""Shares of the knob, from the last scale that runs backwards."""

LARGEST = 0.95
FITTED = (0.3, 0.6, 0.9)
TOLERANCE = 0.02
"""How near the target a measured plan must be, relative, before the search ends."""

_STEP = 0.01
_ROUNDS = 4

Advance = Callable[[float, str], None]
"""Told the share of the work that was done, and what for."""


@dataclass(frozen=True)
class Trial:
    """One plan that was tried.

    Attributes:
        options: As `stepvar generate` takes it.
        share: The knob; skips: scales left out.
        flops_ratio: Dense FLOPs of the transformer over this plan's.
        speedup, psnr: As measured; None where it was not needed.
    """

    options: str
    share: float
    skips: int
    flops_ratio: float
    speedup: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class Calibration:
    """A plan that meets its target.

    Attributes:
        plan: What to pass as `pruning=`.
        options: The same for the command line.
        target: "speedup" or "psnr", and its value.
        speedup, psnr: Measured once more at the end, interleaved with the dense run.
        trials: What was tried on the way.
    """

    plan: LateScales
    options: str
    target: tuple[str, float]
    speedup: Interval
    psnr: Interval
    trials: list[Trial] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "options": self.options,
            "ratios": {str(name): ratio for name, ratio in self.plan.ratios.items()},
            "skip": list(self.plan.skip),
            "target": {self.target[0]: self.target[1]},
            "speedup": self.speedup.as_json(),
            "psnr": self.psnr.as_json(),
            "trials": [vars(trial) for trial in self.trials],
        }


def calibrate(
    pipeline: NextScalePipeline,
    prompts: Sequence[str],
    *,
    target_speedup: float | None = None,
    target_psnr: float | None = None,
    method: str = "stepvar",
    skips: int = 0,
    repeats: int = 5,
    advance: Advance | None = None,
    settings: dict[str, Any] | None = None,
) -> Calibration:
    """Finds how much to prune.

    Args:
        pipeline: The model, on the device that it will run on.
        prompts: What to fit on; more give a PSNR that holds better for new prompts. Times are of one
            picture, end to end.
        target_speedup: Dense time over pruned time.
        target_psnr: Instead: mean PSNR to the dense pictures of the same seeds, in dB. The fastest plan that
            still reaches it is taken.
        method: One of `stepvar.presets.METHODS`.
        skips: Late scales that may be left out where pruning alone does not reach the target speed; with a
            target PSNR, where that is faster.
        repeats: Interleaved rounds of each measurement of time.
        advance: Hears of progress.
        settings: Keyword arguments of the pipeline: size, guidance and so on.

    Raises:
        ValueError: When the target cannot be reached; the message tells what can.
    """
    if (target_speedup is None) == (target_psnr is None):
        raise ValueError("Give target_speedup or target_psnr, one of the two.")
    if not prompts:
        raise ValueError("Calibration needs prompts; none were given.")
    search = _Search(pipeline, prompts, method, repeats, advance, settings or {})
    if not 0 <= skips <= len(search.heights) - 2:
        raise ValueError(f"skips is {skips}; this model has {len(search.heights)} scales.")
    if target_speedup is not None:
        if not target_speedup > 1.0:
            raise ValueError(f"target_speedup is {target_speedup:g}; it must be above 1, the dense run's.")
        share, skipped = search.for_speed(target_speedup, skips)
        return search.finish(share, skipped, ("speedup", target_speedup))
    if target_psnr is None or not target_psnr > 0.0:
        raise ValueError(f"target_psnr is {target_psnr}; it must be a positive number of dB.")
    share, skipped = search.for_likeness(target_psnr, skips)
    return search.finish(share, skipped, ("psnr", target_psnr))


class _Search:
    """Measures plans of one model, and remembers them."""

    def __init__(
        self,
        pipeline: NextScalePipeline,
        prompts: Sequence[str],
        method: str,
        repeats: int,
        advance: Advance | None,
        settings: dict[str, Any],
    ) -> None:
        self.pipeline, self.prompts, self.method, self.repeats = pipeline, list(prompts), method, repeats
        self.advance, self.settings = advance, settings
        self.size = {
            key: settings[key]
            for key in ("height", "width", "aspect_ratio", "pixel_budget", "guidance_scale")
            if key in settings
        }
        self.heights = [entry.scale.height for entry in pipeline.summary(**self.size).plan.scales]
        self.dense: list[Any] | None = None
        self.trials: list[Trial] = []

    def plan(self, share: float, skips: int) -> LateScales:
        """The plan at one turn of the knob."""
        names = range(-1 - skips, -1 - skips - len(SHAPE), -1)
        usable = [name for name in names if -name < len(self.heights)]
        ratios = {
            name: round(share * weight, 4)
            for name, weight in zip(usable, SHAPE, strict=False)
            if self.heights[name] ** 2 * share * weight >= 1.0
        }
        return with_scales(self.method, ratios, tuple(range(-skips, 0)))

    def options(self, plan: LateScales) -> str:
        """A plan as options of the command line."""
        parts = [] if self.method == "stepvar" else [f"--method {self.method}"]
        if plan.ratios:
            named = ",".join(f"{name}={ratio:g}" for name, ratio in plan.ratios.items())
            parts.append(f"--ratios={named}")
        if plan.skip:
            parts.append(f"--skip={','.join(str(name) for name in plan.skip)}")
        return " ".join(parts)

    def flops(self, share: float, skips: int) -> float:
        """Share of the dense run's FLOPs."""
        plan = self.plan(share, skips)
        if not plan.ratios and not plan.skip:
            return 1.0
        summary = self.pipeline.summary(plan, **self.size)
        return summary.flops / summary.dense_flops

    def share_for(self, flops: float, skips: int) -> float:
        """The knob that gives a share of the dense FLOPs, by halving: FLOPs fall as it is turned up."""
        low, high = 0.0, LARGEST
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self.flops(middle, skips) > flops else (low, middle)
        return (low + high) / 2

    def for_speed(self, target: float, most_skips: int) -> tuple[float, int]:
        """The gentlest plan with a speed-up: as few skips as will do.

        Where a further skip alone is faster than the target, nothing is pruned beside it.
        """
        reached = 1.0
        for skips in range(most_skips + 1):
            shares = [share for share in FITTED if self.plan(share, skips).ratios]
            plans = [(0.0, skips)] * (skips > 0) + [(share, skips) for share in (*shares, LARGEST)]
            speeds = self.speeds(plans)
            reached = max(reached, *speeds)
            if speeds[-1] < target * (1.0 - TOLERANCE):
                continue
            if skips and speeds[0] >= target:
                return 0.0, skips
            points = [(self.flops(*plan), 1.0 / speed) for plan, speed in zip(plans, speeds, strict=True)]
            return self._refined(target, skips, [(1.0, 1.0), *points]), skips
        more = f"{most_skips} scales skipped" if most_skips else "no scale skipped"
        raise ValueError(
            f"A speed-up of {target:g} cannot be reached on this machine: with {LARGEST:g} pruned and {more} "
            f"it is {reached:.2f}. Ask for less, or allow more skips."
        )

    def _refined(self, target: float, skips: int, points: list[tuple[float, float]]) -> float:
        """Turns the knob until the measured speed is the target: time is linear in FLOPs near there."""
        share = LARGEST
        for _ in range(_ROUNDS):
            nearest = sorted(points, key=lambda point: abs(point[1] - 1.0 / target))[:2]
            slope, fixed = np.polyfit(*zip(*nearest, strict=True), 1)
            wanted = (1.0 / target - fixed) / slope if slope > 1e-6 else nearest[0][0]
            share = self.share_for(wanted, skips)
            [speed] = self.speeds([(share, skips)])
            if abs(speed / target - 1.0) <= TOLERANCE:
                break
            points.append((self.flops(share, skips), 1.0 / speed))
        return share

    def for_likeness(self, target: float, most_skips: int) -> tuple[float, int]:
        """The fastest plan whose pictures are as near to the dense ones as asked."""
        found: list[tuple[float, int]] = []
        best = -float("inf")
        for skips in range(most_skips + 1):
            gentle = _STEP if not skips else 0.0
            while not self.plan(gentle, skips).ratios and not skips:
                gentle += _STEP
            decibels = self.likeness(gentle, skips)
            best = max(best, decibels)
            if decibels < target:
                continue
            low, high = gentle, LARGEST
            if self.likeness(high, skips) >= target:
                low = high
            while high - low > _STEP:
                middle = (low + high) / 2
                low, high = (middle, high) if self.likeness(middle, skips) >= target else (low, middle)
            found.append((low, skips))
        if not found:
            raise ValueError(
                f"A PSNR of {target:g} dB cannot be reached: the gentlest pruning has {best:.1f} dB. Ask for "
                "less, or run dense."
            )
        # Fewer FLOPs are faster, whichever way they are saved.
        return min(found, key=lambda entry: self.flops(*entry))

    def speeds(self, plans: Sequence[tuple[float, int]]) -> list[float]:
        """Speed-ups of plans, measured in turn with the dense run."""
        times = self._times(plans)
        dense = statistics.median(times[0])
        speeds = [dense / statistics.median(spent) for spent in times[1:]]
        for plan, speed in zip(plans, speeds, strict=True):
            self._note(plan, speedup=speed)
        return speeds

    def _times(self, plans: Sequence[tuple[float, int]]) -> list[list[float]]:
        contestants = {"dense": lambda: self._draw(1, None)}
        for index, plan in enumerate(plans):
            contestants[str(index)] = lambda plan=plan: self._draw(1, self.plan(*plan))
        samples = interleaved(contestants, self.repeats, self.pipeline._execution_device)
        return [samples[name].seconds for name in contestants]

    def likeness(self, share: float, skips: int) -> float:
        """Mean PSNR of a plan's pictures to the dense ones."""
        decibels = float(np.mean(self._decibels(self.plan(share, skips))))
        self._note((share, skips), psnr=decibels)
        return decibels

    def _decibels(self, plan: LateScales) -> list[float]:
        if self.dense is None:
            self.dense = self._draw(len(self.prompts), None)
        pruned = self._draw(len(self.prompts), plan)
        return [bounded_psnr(*pair) for pair in zip(pruned, self.dense, strict=True)]

    def _draw(self, count: int, pruning: LateScales | None) -> list[Any]:
        pictures = []
        for start in range(0, count, 8):
            part = self.prompts[start : min(start + 8, count)]
            seeds = [PROMPT_SEED + start + index for index in range(len(part))]
            result = self.pipeline(part, seed=seeds, pruning=pruning, **self.settings)
            pictures += [np.asarray(image) for image in result.images]
        return pictures

    def _note(self, plan: tuple[float, int], **measured: float) -> None:
        share, skips = plan
        ratio = 1.0 / self.flops(share, skips)
        self.trials.append(Trial(self.options(self.plan(share, skips)), share, skips, ratio, **measured))
        if self.advance is not None:
            self.advance(1 / 12, self.trials[-1].options)

    def finish(self, share: float, skips: int, target: tuple[str, float]) -> Calibration:
        """Measures the chosen plan once more, both ways."""
        plan = self.plan(share, skips)
        dense, pruned = self._times([(share, skips)])
        return Calibration(
            plan,
            self.options(plan),
            target,
            median_ratio_interval(dense, pruned),
            mean_interval(self._decibels(plan)),
            self.trials,
        )
