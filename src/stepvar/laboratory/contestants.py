"""What is compared: a list of named configurations, and the exhibits that each takes part in.

A new method in `stepvar.presets.METHODS` stands in both main tables, dense and skip only beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepvar.generation.schedule import ScaleSchedule
from stepvar.presets import METHODS, with_scales
from stepvar.pruning.base import PruningMethod
from stepvar.pruning.scalekv import ScaleKV
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.skipvar import SkipVAR
from stepvar.pruning.stepvar import RECOVERIES, StepVAR

Ratios = Mapping[int, float]
Skip = tuple[int, ...]
Build = Callable[[Ratios, Skip], PruningMethod]

WITHOUT_SKIPS: tuple[Ratios, Skip] = ({-2: 0.5, -1: 0.75}, ())
"""The paper's ratios for HART, on the last two scales: what tells scorers apart."""

WITH_SKIPS: tuple[Ratios, Skip] = ({-4: 0.4, -3: 0.5}, (-2, -1))
"""The paper's plan for Infinity: most of what it saves, it saves by skipping."""

OURS = "StepVAR"
LABELS = {"stepvar": OURS, "fastvar": "FastVAR", "sparsevar-standin": "SparseVAR stand-in"}
"""How methods of `stepvar.presets.METHODS` are called in a report; others keep their name."""

BASELINES: dict[str, Build] = {
    "L2 distance": lambda ratios, skip: StepVAR(ratios=ratios, skip=skip, score="distance"),
    "random": lambda ratios, skip: StepVAR(ratios=ratios, skip=skip, score="random"),
}
"""What a method must beat: the paper's own baselines, with StepVAR's recovery."""

VARIANTS: dict[str, StepVAR] = {
    "as in the paper": StepVAR(ratios=WITHOUT_SKIPS[0]),
    "bilinear recovery": StepVAR(ratios=WITHOUT_SKIPS[0], recovery="bilinear"),
    "values copied too": StepVAR(ratios=WITHOUT_SKIPS[0], values="copied"),
    "expected values": StepVAR(ratios=WITHOUT_SKIPS[0], values="expected"),
    "last layer dense again": StepVAR(ratios=WITHOUT_SKIPS[0], dense_end=1),
    "narrowed in two stages": StepVAR(ratios=WITHOUT_SKIPS[0], stages=2),
    "anchors of stride 4": StepVAR(ratios=WITHOUT_SKIPS[0], anchor_stride=4),
}
"""Beyond the paper: one thing changed at a time."""

OTHERS: dict[str, PruningMethod] = {
    "no guidance on the last two scales": StepVAR(unguided=-2),
    "pruned, no guidance on the last two": StepVAR(ratios=WITHOUT_SKIPS[0], unguided=-2),
    "SkipVAR": SkipVAR(),
    "ScaleKV, 6 %": ScaleKV(share=0.06),
}
"""Accelerators of other kinds, alone or with pruning."""

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
PAIR_RATIO = 0.7
LONGEST_SKIP = 3

DENSE = "dense"
SKIP_ONLY = "skip only"


@dataclass(frozen=True)
class Contestant:
    """One configuration.

    Attributes:
        name: Unique.
        pruning: What the pipeline is given; None is dense.
        main: Whether it is drawn on all prompts, or only on those of the ablations.
    """

    name: str
    pruning: PruningMethod | None
    main: bool = False


class Field:
    """The contestants of one report, without duplicates.

    Args:
        schedule: The model's scales: stage pairs depend on how many there are.
        depth: Its layers; variants that need more are left out.
    """

    def __init__(self, schedule: ScaleSchedule, depth: int) -> None:
        self.schedule, self.depth = schedule, depth
        self.members: list[Contestant] = []
        self.exhibits: dict[str, list[tuple[str, Contestant]]] = {}
        self._enter_main()
        self._enter_ablations()

    def __iter__(self) -> Any:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, name: str) -> Contestant:
        return next(member for member in self.members if member.name == name)

    def exhibit(self, name: str) -> list[tuple[str, Contestant]]:
        """Label and contestant of everything that an exhibit shows, in its order."""
        return self.exhibits[name]

    def add(self, exhibit: str, label: str, pruning: PruningMethod | None, main: bool = False) -> None:
        """Enters a configuration, or lets one that is equal take part in a further exhibit."""
        member = next((entry for entry in self.members if entry.pruning == pruning), None)
        if member is None:
            member = Contestant(label if main else f"{exhibit}: {label}", pruning, main)
            self.members.append(member)
        self.exhibits.setdefault(exhibit, []).append((label, member))

    def digest(self) -> str:
        """Changes when any configuration does."""
        from stepvar.models.pipeline import describe

        told = [[member.name, describe(member.pruning), member.main] for member in self]
        told += [[name, label, entry.name] for name, shown in self.exhibits.items() for label, entry in shown]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _enter_main(self) -> None:
        skip = StepVAR(skip=WITH_SKIPS[1])
        self.add("decomposition", DENSE, None, main=True)
        self.add("decomposition", SKIP_ONLY, skip, main=True)
        self.add("decomposition", "prune only", StepVAR(ratios=WITH_SKIPS[0]), main=True)
        for table, plan, note in (("table 1", WITHOUT_SKIPS, ""), ("table 2", WITH_SKIPS, " and skips")):
            self.add(table, DENSE, None)
            self.add(table, SKIP_ONLY, skip)
            for name, build in whole_methods().items():
                self.add(table, f"{name}{note}", build(*plan), main=True)
        self.add("decomposition", "prune and skip", StepVAR(*WITH_SKIPS))
        self.add("decomposition", "prune the last two instead", StepVAR(*WITHOUT_SKIPS))

    def _enter_ablations(self) -> None:
        last = -len(self.schedule) + 1
        for score in SCORERS:
            self.add("selection", score, StepVAR(ratios=WITHOUT_SKIPS[0], score=score))
        for recovery in RECOVERIES:
            self.add("recovery", recovery, StepVAR(ratios=WITHOUT_SKIPS[0], recovery=recovery))
        for name, variant in VARIANTS.items():
            if variant.stages < self.depth:
                self.add("variants", name, variant)
        self.add("others", DENSE, None)
        self.add("others", SKIP_ONLY, StepVAR(skip=WITH_SKIPS[1]))
        self.add("others", OURS, StepVAR(*WITHOUT_SKIPS))
        for name, other in OTHERS.items():
            self.add("others", name, other)
        self.add("ratio", "0", None)
        for ratio in RATIOS:
            self.add("ratio", f"{ratio:g}", StepVAR(ratios={-2: ratio, -1: ratio}))
        for first in range(last, -1):
            pair = {first: PAIR_RATIO, first + 1: PAIR_RATIO}
            self.add("pairs", pair_label(self.schedule, first), StepVAR(ratios=pair))
        for count in range(1, min(LONGEST_SKIP, len(self.schedule) - 2) + 1):
            self.add("skips", f"last {count}", StepVAR(skip=tuple(range(-count, 0))))


def whole_methods() -> dict[str, Build]:
    """Every method of the main tables by its label, ours first."""
    known = {LABELS.get(name, name): _builder(name) for name in METHODS}
    return {**known, **BASELINES}


def _builder(name: str) -> Build:
    return lambda ratios, skip: with_scales(name, ratios, skip)


def pair_label(schedule: ScaleSchedule, first: int) -> str:
    """Name of two adjacent scales, the first of which is counted from the end."""
    return f"{schedule[len(schedule) + first]}, {schedule[len(schedule) + first + 1]}"


def rivals(members: Sequence[tuple[str, Contestant]], ours: str) -> list[tuple[str, Contestant]]:
    """The other methods of a table: neither ours, nor dense, nor skip only."""
    return [(label, entry) for label, entry in members if label not in (ours, DENSE, SKIP_ONLY)]
