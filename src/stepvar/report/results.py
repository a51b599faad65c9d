"""Results from raw numbers: every value with its interval, paired by prompt and seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np

from stepvar.metrics.frechet import FrechetReference
from stepvar.metrics.statistics import (
    Interval,
    mean_interval,
    median_ratio_interval,
    paired_interval,
    statistic_interval,
)
from stepvar.report.configurations import DENSE, Configuration, Configurations, Entry, rivals
from stepvar.report.folder import ReportFolder
from stepvar.report.protocol import Protocol
from stepvar.report.records import (
    EqualTimeDifference,
    PairedDifference,
    Pictures,
    PromptMeasures,
    Row,
    Values,
)
from stepvar.scenes import CATEGORIES

FRECHET_REPEATS = 200


class Results:
    """Everything a folder holds so far.

    Args:
        folder: With at least one block of pictures, one round of times and the costs.
        configurations: What is compared.
        protocol: What was to be measured.

    Raises:
        ValueError: When the folder lacks what every table needs.
    """

    def __init__(self, folder: ReportFolder, configurations: Configurations, protocol: Protocol) -> None:
        self.folder, self.configurations, self.protocol = folder, configurations, protocol
        self.costs: dict[str, Any] = folder.load("costs") or {}
        self.memory: dict[str, int | None] = folder.load("memory") or {}
        self.blocks = self._present("pictures-{:03}", protocol.central_blocks)
        self.rounds = self._present("times-{:02}", protocol.rounds)
        if not self.costs or not self.blocks or not self.rounds:
            raise ValueError(f"'{folder.path}' holds too few measurements for a report: let the run go on.")
        self._rows: dict[tuple[str, int], Row] = {}
        self._frechet_references: dict[tuple[str, int], FrechetReference] = {}
        self._equal_times: dict[tuple[str, str], EqualTimeDifference | None] = {}
        self._differences: dict[tuple[str, str], list[PairedDifference]] = {}

    def _present(self, pattern: str, count: int) -> list[Any]:
        """Raw numbers up to the first gap: later ones would break the pairing."""
        found = []
        for index in range(count):
            numbers = self.folder.load(pattern.format(index))
            if numbers is None:
                break
            found.append(numbers)
        return found

    @property
    def has_scenes(self) -> bool:
        """Whether pictures were measured against their prompts."""
        return "real" in self.blocks[0]

    @cached_property
    def pictures(self) -> dict[str, Pictures]:
        """By configuration."""
        return {config.name: self._pictures(config.name) for config in self.configurations}

    def _pictures(self, name: str) -> Pictures:
        parts = [block["configurations"][name] for block in self.blocks if name in block["configurations"]]
        return Pictures(
            **{entry.name: _joined(parts, entry.name) for entry in fields(Pictures) if entry.name in parts[0]}
        )

    @cached_property
    def real(self) -> Values | None:
        """Features [N, F] of renders of the prompts; None where scenes were not checked."""
        return None if not self.has_scenes else _joined([block["real"] for block in self.blocks], "features")

    @cached_property
    def real_fit(self) -> Interval | None:
        """Cosine of renders with their prompts: what a perfect model would reach."""
        return (
            None
            if not self.has_scenes
            else mean_interval(_joined([block["real"] for block in self.blocks], "text_fit"))
        )

    def times(self, name: str) -> list[float]:
        """End-to-end seconds of one picture, a round each."""
        return [turn[name]["seconds"] for turn in self.rounds]

    def scale_seconds(self, name: str) -> list[Interval]:
        """Seconds of every scale, medians over the rounds."""
        runs = [turn[name]["scales"] for turn in self.rounds]
        return [_median_interval(np.array(values)) for values in zip(*runs, strict=True)]

    def seconds(self, name: str) -> float:
        """Median seconds of one picture, end to end."""
        return statistics.median(self.times(name))

    def outside(self, name: str) -> float:
        """Median seconds of what no plan touches: text encoder and decoder."""
        stages = [turn[name]["stages"] for turn in self.rounds]
        return statistics.median(stage["text"] + stage["decode"] for stage in stages)

    def transformer_speedup(self, name: str) -> Interval:
        """Dense over a configuration, of the time that the scales take."""
        dense, own = ([sum(turn[each]["scales"]) for turn in self.rounds] for each in (DENSE, name))
        return median_ratio_interval(dense, own)

    def speedup(self, name: str) -> Interval:
        return median_ratio_interval(self.times(DENSE), self.times(name))

    def rows(self, table: str) -> list[Row]:
        """An table's configurations, all on the same pictures."""
        return self._rows_of(table, self.configurations.table(table))

    def references(self, table: str) -> list[Row]:
        """What an table is seen against, on the same pictures."""
        return self._rows_of(table, self.configurations.references(table))

    def _rows_of(self, table: str, configs: Sequence[Entry]) -> list[Row]:
        count = self.shared(table)
        return [self.row(label, config, count) for label, config in configs]

    def shared(self, table: str) -> int:
        """How many pictures all configurations of an table drew."""
        counts = [len(self.pictures[config.name].psnr) for _, config in self.configurations.table(table)]
        return min(counts, default=len(self.pictures[DENSE].psnr))

    def row(self, label: str, config: Configuration, count: int) -> Row:
        """One configuration on its first pictures."""
        key = (config.name, count)
        if key not in self._rows:
            self._rows[key] = self._measure(config, count)
        return Row(**{**vars(self._rows[key]), "label": label})

    def _measure(self, config: Configuration, count: int) -> Row:
        ours, dense = (self.pictures[name].first(count) for name in (config.name, DENSE))
        costs = self.costs[config.name]
        zero = Interval(0.0, 0.0, 0.0, count)
        same = config.kind == DENSE
        return Row(
            label=config.name,
            kind=config.kind,
            n=count,
            tokens=costs["tokens"] / costs["dense_tokens"],
            flops=costs["flops"] / costs["dense_flops"],
            cache_bytes=costs["cache_bytes"],
            memory=self.memory.get(config.name),
            at_most=bool(costs.get("decides_per_picture")),
            seconds=self.seconds(config.name),
            outside=self.outside(config.name),
            speedup=self.speedup(config.name),
            psnr=mean_interval(ours.psnr),
            ssim=mean_interval(ours.ssim),
            scene_distance=mean_interval(ours.scene_distance),
            lpips=None if ours.lpips is None else mean_interval(ours.lpips),
            agreement=mean_interval(ours.agreement),
            detail=mean_interval(ours.detail / np.maximum(dense.detail, 1e-9)),
            frechet=zero if same else self.frechet_to_dense(count).interval(ours.features),
            frechet_valid=count > ours.features.shape[1],
            prompt=self._prompt_measures(ours, dense, count),
        )

    def _prompt_measures(self, ours: Pictures, dense: Pictures, count: int) -> PromptMeasures | None:
        real = self.frechet_to_real(count)
        change = _scene_change(ours.passed, dense.passed)
        if ours.passed is None or ours.text_fit is None or change is None or real is None:
            return None
        return PromptMeasures(
            mean_interval(ours.passed), change, mean_interval(ours.text_fit), real.interval(ours.features)
        )

    def frechet_to_dense(self, count: int) -> FrechetReference:
        """Distances to the dense run's first pictures."""
        if ("dense", count) not in self._frechet_references:
            features = self.pictures[DENSE].features[:count]
            self._frechet_references["dense", count] = FrechetReference(features, FRECHET_REPEATS)
        return self._frechet_references["dense", count]

    def frechet_to_real(self, count: int) -> FrechetReference | None:
        """Distances to renders of the first prompts; None where scenes were not checked."""
        if self.real is None:
            return None
        if ("real", count) not in self._frechet_references:
            self._frechet_references["real", count] = FrechetReference(self.real[:count], FRECHET_REPEATS)
        return self._frechet_references["real", count]

    def differences(self, table: str, ours: str) -> list[PairedDifference]:
        """Ours against every other pruning method of an table."""
        if (table, ours) not in self._differences:
            configs = self.configurations.table(table)
            mine = dict(configs)[ours]
            self._differences[table, ours] = [
                self._compare(label, mine, rival) for label, rival in rivals(configs, ours)
            ]
        return self._differences[table, ours]

    def _compare(self, label: str, mine: Configuration, rival: Configuration) -> PairedDifference:
        left, right = self.together(mine.name, rival.name)
        return PairedDifference(
            label,
            paired_interval(left.psnr, right.psnr),
            paired_interval(left.scene_distance, right.scene_distance),
            self.frechet_to_dense(len(left.psnr)).difference(left.features, right.features),
            _scene_change(left.passed, right.passed),
            median_ratio_interval(self.times(mine.name), self.times(rival.name)),
        )

    def together(self, *names: str) -> list[Pictures]:
        """Configurations on the pictures that all of them drew."""
        count = min(len(self.pictures[name].psnr) for name in names)
        return [self.pictures[name].first(count) for name in names]

    def at_equal_time(self, family: str, rival: Configuration) -> EqualTimeDifference | None:
        """Ours minus the rival, where ours is pruned until it takes the rival's time.

        By a straight line between two of our plans, one slower and one faster than the rival. A rival slower
        than all of ours is compared with our slowest. None where it is faster than all of them.

        Args:
            family: Of `Configurations.families`.
        """
        key = (family, rival.name)
        if key not in self._equal_times:
            self._equal_times[key] = self._at_equal_time(family, rival)
        return self._equal_times[key]

    def _at_equal_time(self, family: str, rival: Configuration) -> EqualTimeDifference | None:
        plans = sorted(self.configurations.families[family], key=lambda config: self.seconds(config.name))
        wanted = self.seconds(rival.name)
        times = [self.seconds(config.name) for config in plans]
        if wanted < times[0]:
            return None
        place = next((index for index, value in enumerate(times) if value > wanted), len(times))
        fast, slow = plans[place - 1], plans[min(place, len(plans) - 1)]
        low, high = times[place - 1], times[min(place, len(plans) - 1)]
        share = (wanted - low) / (high - low) if high > low else 0.0
        quick, late, theirs = self.together(fast.name, slow.name, rival.name)
        near = self.frechet_to_dense(len(theirs.psnr))

        def between(first: Values, second: Values) -> Values:
            return (1.0 - share) * first + share * second

        passed = None if quick.passed is None or late.passed is None else between(quick.passed, late.passed)

        ours = between(near.distances(quick.features), near.distances(late.features))
        return EqualTimeDifference(
            psnr=paired_interval(between(quick.psnr, late.psnr), theirs.psnr),
            frechet=near.interval_of(ours - near.distances(theirs.features)),
            scene=_scene_change(passed, theirs.passed),
            seconds=min(wanted, high),
        )

    def categories(self, table: str) -> dict[str, dict[str, Interval]]:
        """Scene score by configuration and category, what the table is seen against included."""
        if not self.has_scenes:
            return {}
        configs = [*self.configurations.references(table), *self.configurations.table(table)]
        asked = [sample["category"] for block in self.blocks for sample in block["samples"]]
        found: dict[str, dict[str, Interval]] = {}
        for label, config in configs:
            passed = self.pictures[config.name].first(self.shared(table)).passed
            if passed is None:
                continue
            chosen = np.array(asked[: len(passed)])
            found[label] = {
                category: mean_interval(passed[chosen == category])
                for category in CATEGORIES
                if (chosen == category).any()
            }
        return found

    def perturbations(self) -> list[tuple[str, Interval, Interval]]:
        """Scale, PSNR and SSIM of pictures with that scale disturbed."""
        steps = self._present("perturbation-{:02}", len(self.configurations.schedule))
        return [(step["scale"], mean_interval(step["psnr"]), mean_interval(step["ssim"])) for step in steps]

    def diversity(self) -> dict[str, Interval]:
        """Distance between seeds over the dense run's, by configuration; empty where nothing was measured."""
        steps = self._present("diversity-{:02}", self.protocol.diversity_prompts)
        if not steps:
            return {}
        dense = np.array([step["distances"][DENSE] for step in steps])
        return {
            label: mean_interval(np.array([step["distances"][label] for step in steps]) / dense)
            for label in steps[0]["distances"]
        }

    def correlations(self) -> dict[str, Values]:
        """Figure 3: [layers, pictures] by scale."""
        numbers = self.folder.load("energy") or {"correlations": {}}
        return {scale: np.array(rows) for scale, rows in numbers["correlations"].items()}

    def spectra(self) -> dict[str, Values]:
        """Figure 1c: [pictures, bands] of the dense pictures and of what the last scales add."""
        numbers = self.folder.load("frequencies") or {}
        return {label: np.array(rows) for label, rows in numbers.items()}

    def saliency(self) -> dict[str, Values]:
        """Figure 6: share of kept tokens on objects over that of all tokens, by ratio, a picture each."""
        numbers = self.folder.load("saliency") or {}
        return {ratio: np.array(rows) for ratio, rows in numbers.items() if rows}

    def gallery(self) -> Sequence[dict[str, Any]]:
        return self._present("gallery-{:02}", self.protocol.gallery)


def _scene_change(ours: Values | None, theirs: Values | None) -> Interval | None:
    """Difference of the scene scores in points."""
    return None if ours is None or theirs is None else paired_interval(100 * ours, 100 * theirs)


def _joined(parts: Sequence[dict[str, Any]], key: str) -> Values:
    return np.concatenate([np.asarray(part[key], dtype=np.float64) for part in parts])


def _median_interval(values: Values) -> Interval:
    return statistic_interval(lambda places: float(np.median(values[places])), len(values))
