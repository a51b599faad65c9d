"""From raw numbers to results: every value with its interval, paired by prompt and seed."""

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
from stepvar.report.contestants import DENSE, Contestant, Entry, Field, rivals
from stepvar.report.folder import ReportFolder
from stepvar.report.protocol import Protocol
from stepvar.report.records import EqualTime, Pictures, Row, Values, Versus
from stepvar.scenes import CATEGORIES

FRECHET_REPEATS = 200


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
        self.blocks = self._present("pictures-{:03}", protocol.central_blocks)
        self.rounds = self._present("times-{:02}", protocol.rounds)
        if not self.costs or not self.blocks or not self.rounds:
            raise ValueError(f"'{folder.path}' holds too few measurements for a report: let the run go on.")
        self._rows: dict[tuple[str, int], Row] = {}
        self._references: dict[tuple[str, int], FrechetReference] = {}
        self._equal_times: dict[tuple[str, str], EqualTime | None] = {}
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
        keys = [entry.name for entry in fields(Pictures)]
        return Pictures(**{key: _joined(parts, key) if key in parts[0] else None for key in keys})

    @cached_property
    def real(self) -> Values:
        """Features [N, F] of renders of the prompts."""
        return _joined([block["real"] for block in self.blocks], "features")

    @cached_property
    def real_fit(self) -> Interval:
        """Cosine of renders with their prompts: what a perfect model would reach."""
        return mean_interval(_joined([block["real"] for block in self.blocks], "fit"))

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

    def speedup(self, name: str) -> Interval:
        return median_ratio_interval(self.times(DENSE), self.times(name))

    def rows(self, exhibit: str) -> list[Row]:
        """An exhibit's contestants, all on the same pictures."""
        return self._rows_of(exhibit, self.field.exhibit(exhibit))

    def frame(self, exhibit: str) -> list[Row]:
        """What an exhibit is seen against, on the same pictures."""
        return self._rows_of(exhibit, self.field.frame(exhibit))

    def _rows_of(self, exhibit: str, members: Sequence[Entry]) -> list[Row]:
        count = self.shared(exhibit)
        return [self.row(label, member, count) for label, member in members]

    def shared(self, exhibit: str) -> int:
        """How many pictures all contestants of an exhibit drew."""
        return min(len(self.pictures[member.name].psnr) for _, member in self.field.exhibit(exhibit))

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
        same = member.kind == DENSE
        return Row(
            label=member.name,
            kind=member.kind,
            n=count,
            tokens=costs["tokens"] / costs["dense_tokens"],
            flops=costs["flops"] / costs["dense_flops"],
            cache_bytes=costs["cache_bytes"],
            memory=self.memory.get(member.name),
            at_most=bool(costs.get("decides_per_picture")),
            seconds=self.seconds(member.name),
            outside=self.outside(member.name),
            speedup=self.speedup(member.name),
            psnr=mean_interval(ours.psnr),
            ssim=mean_interval(ours.ssim),
            likeness=mean_interval(ours.likeness),
            lpips=None if ours.lpips is None else mean_interval(ours.lpips),
            agreement=mean_interval(ours.agreement),
            detail=mean_interval(ours.detail / np.maximum(dense.detail, 1e-9)),
            frechet=zero if same else self.near_dense(count).interval(ours.features),
            frechet_tells=count > ours.features.shape[1],
            scene=mean_interval(ours.passed),
            scene_change=zero if same else paired_interval(100 * ours.passed, 100 * dense.passed),
            fit=mean_interval(ours.fit),
            real=self.near_real(count).interval(ours.features),
        )

    def near_dense(self, count: int) -> FrechetReference:
        """Distances to the dense run's first pictures."""
        if ("dense", count) not in self._references:
            features = self.pictures[DENSE].features[:count]
            self._references["dense", count] = FrechetReference(features, FRECHET_REPEATS)
        return self._references["dense", count]

    def near_real(self, count: int) -> FrechetReference:
        """Distances to renders of the first prompts."""
        if ("real", count) not in self._references:
            self._references["real", count] = FrechetReference(self.real[:count], FRECHET_REPEATS)
        return self._references["real", count]

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
        left, right = self.together(mine.name, rival.name)
        return Versus(
            label,
            paired_interval(left.psnr, right.psnr),
            paired_interval(left.likeness, right.likeness),
            self.near_dense(len(left.psnr)).difference(left.features, right.features),
            paired_interval(100 * left.passed, 100 * right.passed),
            median_ratio_interval(self.times(mine.name), self.times(rival.name)),
        )

    def together(self, *names: str) -> list[Pictures]:
        """Contestants on the pictures that all of them drew."""
        count = min(len(self.pictures[name].psnr) for name in names)
        return [self.pictures[name].first(count) for name in names]

    def at_equal_time(self, family: str, rival: Contestant) -> EqualTime | None:
        """Ours minus the rival, where ours is pruned until it takes the rival's time.

        By a straight line between two of our plans, one slower and one faster than the rival. A rival slower
        than all of ours is compared with our slowest. None where it is faster than all of them.

        Args:
            family: Of `Field.families`.
        """
        key = (family, rival.name)
        if key not in self._equal_times:
            self._equal_times[key] = self._at_equal_time(family, rival)
        return self._equal_times[key]

    def _at_equal_time(self, family: str, rival: Contestant) -> EqualTime | None:
        plans = sorted(self.field.families[family], key=lambda member: self.seconds(member.name))
        wanted = self.seconds(rival.name)
        times = [self.seconds(member.name) for member in plans]
        if wanted < times[0]:
            return None
        place = next((index for index, value in enumerate(times) if value > wanted), len(times))
        fast, slow = plans[place - 1], plans[min(place, len(plans) - 1)]
        low, high = times[place - 1], times[min(place, len(plans) - 1)]
        share = (wanted - low) / (high - low) if high > low else 0.0
        quick, late, theirs = self.together(fast.name, slow.name, rival.name)
        near = self.near_dense(len(theirs.psnr))

        def between(first: Values, second: Values) -> Values:
            return (1.0 - share) * first + share * second

        ours = between(near.distances(quick.features), near.distances(late.features))
        return EqualTime(
            psnr=paired_interval(between(quick.psnr, late.psnr), theirs.psnr),
            frechet=near.told(ours - near.distances(theirs.features)),
            scene=paired_interval(100 * between(quick.passed, late.passed), 100 * theirs.passed),
            seconds=min(wanted, high),
        )

    def categories(self, exhibit: str) -> dict[str, dict[str, Interval]]:
        """Scene score by contestant and category, what the exhibit is seen against included."""
        members = [*self.field.frame(exhibit), *self.field.exhibit(exhibit)]
        asked = [job["category"] for block in self.blocks for job in block["jobs"]]
        found: dict[str, dict[str, Interval]] = {}
        for label, member in members:
            passed = self.pictures[member.name].passed[: self.shared(exhibit)]
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


def _joined(parts: Sequence[dict[str, Any]], key: str) -> Values:
    return np.concatenate([np.asarray(part[key], dtype=np.float64) for part in parts])


def _median_interval(values: Values) -> Interval:
    return statistic_interval(lambda places: float(np.median(values[places])), len(values))
