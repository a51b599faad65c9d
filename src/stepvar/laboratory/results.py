"""From raw numbers to results: every value with its interval, paired by prompt and seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.embedded.scenes import CATEGORIES
from stepvar.evaluation.frechet import frechet_difference, frechet_interval
from stepvar.evaluation.statistics import Interval, mean_interval, median_ratio_interval, paired_interval
from stepvar.laboratory.contestants import DENSE, Contestant, Field, rivals
from stepvar.laboratory.folder import ReportFolder
from stepvar.laboratory.protocol import Protocol

FRECHET_REPEATS = 200


@dataclass(frozen=True)
class Pictures:
    """Measurements of one contestant's pictures, in the order of the prompts.

    Attributes:
        psnr, ssim, agreement: Against the dense run.
        detail: High-frequency energy.
        passed: Whether everything asked for is there.
        features: [N, F].
        seconds: Of each batch.
    """

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    agreement: NDArray[np.float64]
    detail: NDArray[np.float64]
    passed: NDArray[np.float64]
    features: NDArray[np.float64]
    seconds: list[float]

    def first(self, count: int) -> Pictures:
        """The first pictures only, for a comparison with a contestant that drew fewer."""
        arrays = (self.psnr, self.ssim, self.agreement, self.detail, self.passed, self.features)
        return Pictures(*(array[:count] for array in arrays), self.seconds)


@dataclass(frozen=True)
class Row:
    """One contestant in one exhibit.

    Attributes:
        label: Its name there.
        n: Pictures.
        tokens, flops: Shares of the dense run's.
        cache_bytes, memory: Size of the KV cache, and growth of memory (None where it was not measured).
        seconds: Median time of one picture, end to end.
        speedup: Against dense, in the same rounds.
        psnr, ssim, agreement, detail: Means; `detail` is high-frequency energy over the dense run's.
        frechet: Distance to the dense run's pictures.
        scene: Share of pictures with everything right; scene_change: against dense, in points.
    """

    label: str
    n: int
    tokens: float
    flops: float
    cache_bytes: int
    memory: int | None
    seconds: float
    speedup: Interval
    psnr: Interval
    ssim: Interval
    agreement: Interval
    detail: Interval
    frechet: Interval
    scene: Interval
    scene_change: Interval

    def as_json(self) -> dict[str, Any]:
        return {
            name: value.as_json() if isinstance(value, Interval) else value
            for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class Versus:
    """Ours against one rival, on the same prompts and seeds.

    Attributes:
        rival: Its label.
        psnr, frechet, scene: Ours minus theirs, the scene score in points.
        time: Our median time over theirs.
    """

    rival: str
    psnr: Interval
    frechet: Interval
    scene: Interval
    time: Interval

    @property
    def nearer(self) -> bool:
        """Whether our pictures are nearer to the dense run's on both measures, beyond doubt."""
        return self.psnr.above_zero and self.frechet.below_zero

    @property
    def farther(self) -> bool:
        return self.psnr.below_zero and self.frechet.above_zero

    def as_json(self) -> dict[str, Any]:
        return {
            name: value.as_json() if isinstance(value, Interval) else value
            for name, value in vars(self).items()
        }


class Results:
    """Everything a folder holds so far.

    Args:
        folder: With at least one block of pictures, one round of times and the costs.
        field: What is compared.
        protocol: What was to be measured.

    Raises:
        ValueError: When the folder lacks what every table needs.
    """

    def __init__(self, folder: ReportFolder, field: Field, protocol: Protocol) -> None:
        self.folder, self.field, self.protocol = folder, field, protocol
        self.costs: dict[str, Any] = folder.load("costs") or {}
        self.memory: dict[str, int | None] = folder.load("memory") or {}
        self.blocks = self._present("pictures-{:03}", protocol.main_blocks)
        self.rounds = self._present("times-{:02}", protocol.rounds)
        if not self.costs or not self.blocks or not self.rounds:
            raise ValueError(f"'{folder.path}' holds too few measurements for a report: let the run go on.")
        self._rows: dict[tuple[str, int], Row] = {}
        self._versus: dict[tuple[str, str], list[Versus]] = {}

    def _present(self, pattern: str, count: int) -> list[Any]:
        """Raw numbers up to the first gap: later ones would break the pairing."""
        found = []
        for index in range(count):
            numbers = self.folder.load(pattern.format(index))
            if numbers is None:
                break
            found.append(numbers)
        return found

    @cached_property
    def pictures(self) -> dict[str, Pictures]:
        """By contestant."""
        return {member.name: self._pictures(member.name) for member in self.field}

    def _pictures(self, name: str) -> Pictures:
        parts = [block["contestants"][name] for block in self.blocks if name in block["contestants"]]

        def joined(key: str) -> NDArray[np.float64]:
            return np.concatenate([np.asarray(part[key], dtype=np.float64) for part in parts])

        keys = ("psnr", "ssim", "agreement", "detail", "passed", "features")
        return Pictures(*(joined(key) for key in keys), [part["seconds"] for part in parts])

    def times(self, name: str) -> list[float]:
        """End-to-end seconds of one picture, a round each."""
        return [turn[name]["seconds"] for turn in self.rounds]

    def scale_seconds(self, name: str) -> list[float]:
        """Median seconds of every scale."""
        runs = [turn[name]["scales"] for turn in self.rounds]
        return [statistics.median(values) for values in zip(*runs, strict=True)]

    def stage(self, name: str, stage: str) -> float:
        """Median seconds of "text", "scales" or "decode"."""
        return statistics.median(turn[name]["stages"][stage] for turn in self.rounds)

    def speedup(self, name: str) -> Interval:
        return median_ratio_interval(self.times(DENSE), self.times(name))

    def rows(self, exhibit: str) -> list[Row]:
        """An exhibit's contestants, all on the same pictures."""
        members = self.field.exhibit(exhibit)
        count = min(len(self.pictures[member.name].psnr) for _, member in members)
        return [self.row(label, member, count) for label, member in members]

    def row(self, label: str, member: Contestant, count: int) -> Row:
        """One contestant on its first pictures."""
        key = (member.name, count)
        if key not in self._rows:
            self._rows[key] = self._measure(member, count)
        return Row(**{**vars(self._rows[key]), "label": label})

    def _measure(self, member: Contestant, count: int) -> Row:
        ours, dense = (self.pictures[name].first(count) for name in (member.name, DENSE))
        costs = self.costs[member.name]
        zero = Interval(0.0, 0.0, 0.0, count)
        same = member.pruning is None
        return Row(
            label=member.name,
            n=count,
            tokens=costs["tokens"] / costs["dense_tokens"],
            flops=costs["flops"] / costs["dense_flops"],
            cache_bytes=costs["cache_bytes"],
            memory=self.memory.get(member.name),
            seconds=statistics.median(self.times(member.name)),
            speedup=self.speedup(member.name),
            psnr=mean_interval(ours.psnr),
            ssim=mean_interval(ours.ssim),
            agreement=mean_interval(ours.agreement),
            detail=mean_interval(ours.detail / np.maximum(dense.detail, 1e-9)),
            frechet=zero if same else frechet_interval(dense.features, ours.features, FRECHET_REPEATS),
            scene=mean_interval(ours.passed),
            scene_change=zero if same else paired_interval(100 * ours.passed, 100 * dense.passed),
        )

    def versus(self, exhibit: str, ours: str) -> list[Versus]:
        """Ours against every other pruning method of an exhibit."""
        if (exhibit, ours) not in self._versus:
            members = self.field.exhibit(exhibit)
            mine = dict(members)[ours]
            self._versus[exhibit, ours] = [
                self._compare(label, mine, rival) for label, rival in rivals(members, ours)
            ]
        return self._versus[exhibit, ours]

    def _compare(self, label: str, mine: Contestant, rival: Contestant) -> Versus:
        count = min(len(self.pictures[entry.name].psnr) for entry in (mine, rival))
        left, right, dense = (self.pictures[name].first(count) for name in (mine.name, rival.name, DENSE))
        return Versus(
            label,
            paired_interval(left.psnr, right.psnr),
            frechet_difference(dense.features, left.features, right.features, FRECHET_REPEATS),
            paired_interval(100 * left.passed, 100 * right.passed),
            median_ratio_interval(self.times(mine.name), self.times(rival.name)),
        )

    def categories(self, exhibit: str) -> dict[str, dict[str, Interval]]:
        """Scene score by contestant and category."""
        members = self.field.exhibit(exhibit)
        asked = [job["category"] for block in self.blocks for job in block["jobs"]]
        found: dict[str, dict[str, Interval]] = {}
        for label, member in members:
            passed = self.pictures[member.name].passed
            chosen = np.array(asked[: len(passed)])
            found[label] = {
                category: mean_interval(passed[chosen == category])
                for category in CATEGORIES
                if (chosen == category).any()
            }
        return found

    def perturbations(self) -> list[tuple[str, Interval, Interval]]:
        """Scale, PSNR and SSIM of pictures with that scale disturbed."""
        steps = self._present("perturbation-{:02}", len(self.field.schedule))
        return [(step["scale"], mean_interval(step["psnr"]), mean_interval(step["ssim"])) for step in steps]

    def diversity(self) -> dict[str, Interval]:
        """Distance between seeds over the dense run's, by contestant; empty where nothing was measured."""
        steps = self._present("diversity-{:02}", self.protocol.diversity_prompts)
        if not steps:
            return {}
        dense = np.array([step["distances"][DENSE] for step in steps])
        return {
            label: mean_interval(np.array([step["distances"][label] for step in steps]) / dense)
            for label in steps[0]["distances"]
        }

    def correlations(self) -> dict[str, NDArray[np.float64]]:
        """Figure 3: [layers, pictures] by scale."""
        numbers = self.folder.load("energy") or {"correlations": {}}
        return {scale: np.array(rows) for scale, rows in numbers["correlations"].items()}

    def spectra(self) -> dict[str, NDArray[np.float64]]:
        """Figure 1c: [pictures, bands] of the dense pictures and of what the last scales add."""
        numbers = self.folder.load("frequencies") or {}
        return {label: np.array(rows) for label, rows in numbers.items()}

    def gallery(self) -> Sequence[dict[str, Any]]:
        return self._present("gallery-{:02}", self.protocol.gallery)
