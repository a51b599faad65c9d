"""Search for a pruning plan with a wanted speed or PSNR.

A plan has one parameter: the share pruned of the last scale that runs; the scales before it are pruned by two
thirds and one third of that. Time is very nearly a fixed part plus a part proportional to the transformer's
FLOPs, so a few measured plans predict the FLOPs for a wanted time; PSNR falls with the share and is found by
bisection. Scales are skipped only where that is allowed, and where pruning is not enough.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stepvar.metrics.fidelity import bounded_psnr
from stepvar.metrics.statistics import Interval, mean_interval, median_ratio_interval
from stepvar.metrics.timing import interleaved
from stepvar.pruning.presets import with_scales

if TYPE_CHECKING:
    from stepvar.generation.pruner import LateScalePruning
    from stepvar.models.pipeline import NextScalePipeline

PROMPT_SEED = 7_000
"""Of the prompts and pictures that a plan is calibrated with; evaluations use others."""

SHAPE = (1.0, 2 / 3, 1 / 3)
"""Weights of the share, from the last scale that runs backwards."""

LARGEST = 0.95
FITTED = (0.3, 0.6, 0.9)
TOLERANCE = 0.02
"""How near the target a measured plan must be, relative, before the search ends."""

MISS = 0.05
"""How far from the target the final measurement may be, relative, before a warning says so."""

_STEP = 0.01
_ROUNDS = 4
_PARTS = 3
"""Of the prompts: for the search, for the measurement at the end, and for the one after a correction."""

Advance = Callable[[float, str], None]
"""Called with the part of the work that was just done, and its name."""


@dataclass(frozen=True)
class Trial:
    """One plan that was tried.

    Attributes:
        options: As `stepvar generate` takes it.
        share: Pruned of the last scale that runs; skips: scales left out.
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
    """The plan found for a target, and what it reaches; `warning` says where that is not the target.

    Attributes:
        plan: What to pass as `pruning=`.
        options: The same for the command line.
        target: "speedup" or "psnr", and its value.
        speedup, psnr: Measured at the end, on prompts that were held back until then; where there are fewer
            than three prompts, perhaps on other seeds. Times are interleaved with the dense run's.
        trials: What was tried on the way.
    """

    plan: LateScalePruning
    options: str
    target: tuple[str, float]
    speedup: Interval
    psnr: Interval
    trials: list[Trial] = field(default_factory=list)

    @property
    def measured(self) -> float:
        """What was measured of the target's kind."""
        return (self.speedup if self.target[0] == "speedup" else self.psnr).value

    @property
    def error(self) -> float:
        """The measured value against the target, relative: of a ratio for speed, of dB for likeness."""
        return self.measured / self.target[1] - 1.0

    @property
    def warning(self) -> str | None:
        """By how much the target was missed, on either side; None within `MISS` of it."""
        if abs(self.error) <= MISS:
            return None
        name, target = self.target
        label, unit = ("speed-up", "") if name == "speedup" else ("PSNR", " dB")
        side = "below" if self.error < 0.0 else "above"
        return (
            f"On what was held back, the {label} is {self.measured:.2f}{unit}: {abs(self.error):.1%} {side} "
            f"the target of {target:g}{unit}."
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "options": self.options,
            "ratios": {str(name): ratio for name, ratio in self.plan.ratios.items()},
            "skip": list(self.plan.skip),
            "target": {self.target[0]: self.target[1]},
            "error": self.error,
            "warning": self.warning,
            "speedup": self.speedup.as_json(),
            "psnr": self.psnr.as_json(),
            "trials": [vars(trial) for trial in self.trials],
        }


class PromptSet:
    """Some prompts with a seed each; their dense pictures are generated once."""

    def __init__(
        self, pipeline: NextScalePipeline, prompts: Sequence[str], seed: int, settings: dict[str, Any]
    ) -> None:
        self.pipeline, self.prompts, self.seed, self.settings = pipeline, prompts, seed, settings
        self.dense: list[Any] | None = None

    def decibels(self, plan: LateScalePruning) -> list[float]:
        """PSNR of a plan's pictures to the dense ones."""
        if self.dense is None:
            self.dense = self.generate(len(self.prompts), None)
        pruned = self.generate(len(self.prompts), plan)
        return [bounded_psnr(*pair) for pair in zip(pruned, self.dense, strict=True)]

    def generate(self, count: int, pruning: LateScalePruning | None) -> list[Any]:
        """The first pictures."""
        pictures = []
        for start in range(0, count, 8):
            part = self.prompts[start : min(start + 8, count)]
            seeds = [self.seed + start + index for index in range(len(part))]
            result = self.pipeline(part, seed=seeds, pruning=pruning, **self.settings)
            # Of a video all frames count, as one tall picture.
            videos = result.frames if self.pipeline.draws_videos else [[image] for image in result.images]
            pictures += [np.concatenate([np.asarray(frame) for frame in frames]) for frames in videos]
        return pictures


def _split(pipeline: NextScalePipeline, prompts: Sequence[str], settings: dict[str, Any]) -> list[PromptSet]:
    """Splits the prompts, with no seed twice; a part without any takes the last prompt again.

    They are shuffled first: prompts often come in turns of categories, which differ under pruning.
    """
    order = np.random.default_rng(PROMPT_SEED).permutation(len(prompts))
    shuffled = [prompts[place] for place in order]
    shares = [shuffled[part::_PARTS] or [shuffled[-1]] for part in range(_PARTS)]
    return [
        PromptSet(pipeline, share, PROMPT_SEED + part * len(prompts), settings)
        for part, share in enumerate(shares)
    ]


class PlanSearch:
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
        self.pipeline, self.method, self.repeats, self.advance = pipeline, method, repeats, advance
        self.seen, *self.held_back = _split(pipeline, prompts, settings)
        self.settings = settings
        self.heights = [entry.scale.height for entry in pipeline.summary(**self.settings).plan.scales]
        self.trials: list[Trial] = []

    def plan(self, share: float, skips: int) -> LateScalePruning:
        """The plan that prunes a share of the last scale that runs."""
        names = range(-1 - skips, -1 - skips - len(SHAPE), -1)
        usable = [name for name in names if -name < len(self.heights)]
        ratios = {
            name: round(share * weight, 4)
            for name, weight in zip(usable, SHAPE, strict=False)
            if self.heights[name] ** 2 * share * weight >= 1.0
        }
        return with_scales(self.method, ratios, tuple(range(-skips, 0)))

    def options(self, plan: LateScalePruning) -> str:
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
        summary = self.pipeline.summary(plan, **self.settings)
        return summary.flops / summary.dense_flops

    def share_for(self, flops: float, skips: int) -> float:
        """The share that gives a part of the dense FLOPs, by bisection: FLOPs fall as the share grows."""
        low, high = 0.0, LARGEST
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self.flops(middle, skips) > flops else (low, middle)
        return (low + high) / 2

    def for_speed(self, target: float, most_skips: int) -> Trial:
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
                return self._timed(skips)[0][0]
            return self._refined(target, skips)
        more = f"{most_skips} scales skipped" if most_skips else "no scale skipped"
        raise ValueError(
            f"A speed-up of {target:g} cannot be reached on this machine: with {LARGEST:g} pruned and {more} "
            f"it is {reached:.2f}. Ask for less, or allow more skips."
        )

    def _refined(self, target: float, skips: int) -> Trial:
        """Moves the share towards a speed, and takes the trial that came nearest to it."""
        for _ in range(_ROUNDS):
            _, speed = self._nearest(target, skips)
            if abs(speed / target - 1.0) <= TOLERANCE:
                break
            self.speeds([(self._share_for_speed(target, skips), skips)])
        return self._nearest(target, skips)[0]

    def _share_for_speed(self, target: float, skips: int) -> float:
        """The share for a speed: time is linear in FLOPs near there, and near trials count most.

        A line through the two nearest trials alone would lead astray where noise swapped their order.
        """
        points = [(1.0 / trial.flops_ratio, 1.0 / speed) for trial, speed in self._timed(skips)]
        flops, seconds = np.transpose([(1.0, 1.0), *points])
        weights = 1.0 / (np.abs(seconds * target - 1.0) + TOLERANCE)
        slope, fixed = np.polyfit(flops, seconds, 1, w=weights)
        wanted = (1.0 / target - fixed) / slope if slope > 1e-6 else flops[np.argmax(weights)]
        return self.share_for(float(wanted), skips)

    def _nearest(self, target: float, skips: int) -> tuple[Trial, float]:
        """The trial whose speed-up is nearest, and that."""
        return min(self._timed(skips), key=lambda timed: abs(timed[1] / target - 1.0))

    def _timed(self, skips: int) -> list[tuple[Trial, float]]:
        """Trials and their speed-ups."""
        return [
            (trial, trial.speedup)
            for trial in self.trials
            if trial.skips == skips and trial.speedup is not None
        ]

    def for_psnr(self, target: float, most_skips: int) -> Trial:
        """The fastest plan whose pictures have the PSNR to the dense ones that is asked for."""
        found: list[Trial] = []
        best = -float("inf")
        for skips in range(most_skips + 1):
            trial, decibels = self._furthest(target, skips)
            best = max(best, decibels)
            if decibels >= target:
                found.append(trial)
        if not found:
            raise ValueError(
                f"A PSNR of {target:g} dB cannot be reached: the gentlest pruning has {best:.1f} dB. Ask for "
                "less, or run dense."
            )
        # Fewer FLOPs are faster, whichever way they are saved.
        return max(found, key=lambda trial: trial.flops_ratio)

    def _furthest(self, target: float, skips: int) -> tuple[Trial, float]:
        """The most pruned plan that keeps a PSNR, and its PSNR; the gentlest one where none does."""
        low = self.psnr(self._gentlest(skips), skips)
        if low[1] < target:
            return low
        high = self.psnr(LARGEST, skips)
        if high[1] >= target:
            return high
        while high[0].share - low[0].share > _STEP:
            middle = self.psnr((low[0].share + high[0].share) / 2, skips)
            low, high = (middle, high) if middle[1] >= target else (low, middle)
        return low

    def _gentlest(self, skips: int) -> float:
        """The smallest share that leaves anything out."""
        share = 0.0
        while not skips and not self.plan(share, skips).ratios:
            share += _STEP
        return share

    def speeds(self, plans: Sequence[tuple[float, int]]) -> list[float]:
        """Speed-ups of plans, measured in turn with the dense run."""
        times = self._times(plans, self.seen)
        dense = statistics.median(times[0])
        speeds = [dense / statistics.median(spent) for spent in times[1:]]
        for plan, speed in zip(plans, speeds, strict=True):
            self._note(plan, speedup=speed)
        return speeds

    def _times(self, plans: Sequence[tuple[float, int]], pictures: PromptSet) -> list[list[float]]:
        runs: dict[str, Callable[[], list[Any]]] = {"dense": partial(pictures.generate, 1, None)}
        for index, plan in enumerate(plans):
            runs[str(index)] = partial(pictures.generate, 1, self.plan(*plan))
        samples = interleaved(runs, self.repeats, self.pipeline._execution_device)
        return [samples[name].seconds for name in runs]

    def psnr(self, share: float, skips: int) -> tuple[Trial, float]:
        """Mean PSNR of a plan's pictures to the dense ones; earlier measurements are looked up."""
        for trial in self.trials:
            if (trial.share, trial.skips) == (share, skips) and trial.psnr is not None:
                return trial, trial.psnr
        decibels = float(np.mean(self.seen.decibels(self.plan(share, skips))))
        return self._note((share, skips), psnr=decibels), decibels

    def _note(self, plan: tuple[float, int], **measured: float) -> Trial:
        share, skips = plan
        ratio = 1.0 / self.flops(share, skips)
        self.trials.append(Trial(self.options(self.plan(share, skips)), share, skips, ratio, **measured))
        if self.advance is not None:
            self.advance(1 / 12, self.trials[-1].options)
        return self.trials[-1]

    def measure_chosen(self, trial: Trial, target: tuple[str, float]) -> Calibration:
        """Measures the chosen plan on held-back prompts; where it misses, corrects it and measures anew."""
        checked, last = self.held_back
        found = self._measured(trial, target, checked)
        if found.warning is None:
            return found
        corrected = self._corrected(trial, found)
        return found if corrected.options == trial.options else self._measured(corrected, target, last)

    def _measured(self, trial: Trial, target: tuple[str, float], pictures: PromptSet) -> Calibration:
        plan = self.plan(trial.share, trial.skips)
        dense, pruned = self._times([(trial.share, trial.skips)], pictures)
        return Calibration(
            plan,
            trial.options,
            target,
            median_ratio_interval(dense, pruned),
            mean_interval(pictures.decibels(plan)),
            self.trials,
        )

    def _corrected(self, trial: Trial, found: Calibration) -> Trial:
        """Searches once more, with the target moved by half of what two measurements of one plan differ by.

        Both are of equally many pictures, so that the truth is most likely halfway between them.
        """
        name, target = found.target
        aim = target + (getattr(trial, name) - found.measured) / 2
        return self._refined(aim, trial.skips) if name == "speedup" else self._furthest(aim, trial.skips)[0]
