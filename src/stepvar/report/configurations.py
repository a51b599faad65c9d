"""Named configurations of a report, and the tables that compare them.

A new method in `stepvar.pruning.presets.METHODS` stands in both main tables, dense and skip only beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from stepvar.generation.guidance import CONDITIONAL, UNCONDITIONAL
from stepvar.generation.pruner import LateScalePruning, PruningMethod
from stepvar.generation.schedule import ScaleSchedule
from stepvar.pruning.fastervar import FasterVAR
from stepvar.pruning.presets import METHODS, with_scales
from stepvar.pruning.recovery import ready_recoveries
from stepvar.pruning.scalekv import ScaleKV
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.skipvar import SkipVAR
from stepvar.pruning.stepvar import StepVAR

Ratios = Mapping[int, float]
Skip = tuple[int, ...]
Build = Callable[[Ratios, Skip], PruningMethod]

WITHOUT_SKIPS: tuple[Ratios, Skip] = ({-2: 0.5, -1: 0.75}, ())
"""The paper's ratios for HART, on the last two scales, where scorers differ."""

WITH_SKIPS: tuple[Ratios, Skip] = ({-4: 0.4, -3: 0.5}, (-2, -1))
"""The paper's plan for Infinity: most of what it saves, it saves by skipping."""

OURS = "StepVAR"
LABELS = {
    "stepvar": OURS,
    "fastvar": "FastVAR",
    "fastervar": "FasterVAR's mixtures",
    "sparsevar-standin": "SparseVAR stand-in",
}
"""How methods of `stepvar.pruning.presets.METHODS` are called in a report; others keep their name."""

BASELINES: dict[str, Build] = {
    "L2 distance": lambda ratios, skip: StepVAR(ratios=ratios, skip=skip, score="distance"),
    "random": lambda ratios, skip: StepVAR(ratios=ratios, skip=skip, score="random"),
}
"""What a method must beat: the paper's own baselines, with StepVAR's recovery."""

VARIANTS: dict[str, StepVAR] = {
    "as in the paper": StepVAR(ratios=WITHOUT_SKIPS[0]),
    "gains of like neighbours": StepVAR(ratios=WITHOUT_SKIPS[0], recovery="guided"),
    "values copied too": StepVAR(ratios=WITHOUT_SKIPS[0], values="copied"),
    "expected values": StepVAR(ratios=WITHOUT_SKIPS[0], values="expected"),
    "last layer dense again": StepVAR(ratios=WITHOUT_SKIPS[0], dense_end=1),
    "narrowed in two stages": StepVAR(ratios=WITHOUT_SKIPS[0], stages=2),
    "anchors of stride 4": StepVAR(ratios=WITHOUT_SKIPS[0], anchor_stride=4),
    "mostly texture": StepVAR(ratios=WITHOUT_SKIPS[0], structure_weight=0.25),
    "mostly structure": StepVAR(ratios=WITHOUT_SKIPS[0], structure_weight=0.75),
    "scores by rank": StepVAR(ratios=WITHOUT_SKIPS[0], normalisation="rank"),
    "pool of five tokens": StepVAR(ratios=WITHOUT_SKIPS[0], kernel=5),
    "every layer pruned": StepVAR(ratios=WITHOUT_SKIPS[0], first_layer=0),
}
"""What the paper leaves open, and beyond it: one thing changed at a time."""

OTHERS: dict[str, PruningMethod] = {
    "no guidance on the last two scales": StepVAR(unguided=-2),
    "pruned, no guidance on the last two": StepVAR(ratios=WITHOUT_SKIPS[0], unguided=-2),
    "SkipVAR": SkipVAR(),
    "ScaleKV, 6 %": ScaleKV(share=0.06),
}
"""Accelerators of other kinds, alone or with pruning."""

FASTERVAR: dict[str, PruningMethod] = {
    "FasterVAR": FasterVAR.published(),
    "FasterVAR, with the prompt": replace(FasterVAR.published(), remaining=CONDITIONAL),
    "third last scale dense, no prompt": StepVAR(skip=(-2, -1), unguided=-3, remaining=UNCONDITIONAL),
    "third last scale dense, no guidance": StepVAR(skip=(-2, -1), unguided=-3),
    "third last scale left out too": StepVAR(skip=(-3, -2, -1)),
}
"""FasterVAR as published for Infinity, and what tells its parts apart: its skips and dropped guidance alone,
and the scale that it projects left out too."""

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
PAIR_RATIO = 0.7
LONGEST_SKIP = 3

STRETCHES = (0.5, 0.75, 1.0, 1.2, 1.6)
"""How much of the ratios ours prunes, to find out what it gives in a rival's time."""

CENTRAL, MAIN, ABLATION = "central", "main", "ablation"
TIERS = (CENTRAL, MAIN, ABLATION)
"""On how many prompts a configuration is generated: the plans in question on most, ablations on fewest."""

BEST, FAITHFUL = "best", "faithful"
"""Names of presets that were searched for on the model itself."""

DENSE, SKIP_ONLY, PRUNE_ONLY, BOTH, OTHER = "dense", "skip only", "prune only", "both", "other"
KINDS = (DENSE, SKIP_ONLY, PRUNE_ONLY, BOTH)
"""What a plan does: every table shows all four."""


@dataclass(frozen=True)
class Configuration:
    """One configuration.

    Attributes:
        name: Unique.
        pruning: What the pipeline is given; None is dense.
        tier: One of `TIERS`.
        drafted: Scales that the model draws before a second one goes on; 0 where it draws all.
    """

    name: str
    pruning: PruningMethod | None
    tier: str = ABLATION
    drafted: int = 0

    @property
    def kind(self) -> str:
        """One of `KINDS`, or "other"."""
        method = self.pruning
        if self.drafted or (method is not None and not isinstance(method, LateScalePruning)):
            return OTHER
        if method is None:
            return DENSE
        if method.unguided is not None:
            return OTHER
        prunes = any(method.ratios.values())
        return BOTH if prunes and method.skip else SKIP_ONLY if method.skip else PRUNE_ONLY


Entry = tuple[str, Configuration]
"""A configuration with its label in a table."""


class Configurations:
    """The configurations of one report, without duplicates.

    Args:
        schedule: The model's scales: the pairs of scales depend on how many there are.
        depth: Its layers; modifications that need more are left out.
        cascade: Whether there is a second model that continues where the first one stops.
        searched: Plans that were found for this very model, by name: `BEST`, `FAITHFUL`.
        rules: Methods with a score or a recovery of the user's, without scales, by the name they are shown
            under.
        refusal: Why the model cannot run a method, None where it can; of the tables of ablations and other
            accelerators such methods are left out.

    Attributes:
        left_out: (table, label, reason) of what the model cannot run.
    """

    def __init__(
        self,
        schedule: ScaleSchedule,
        depth: int,
        cascade: bool = False,
        searched: Mapping[str, StepVAR] | None = None,
        rules: Mapping[str, StepVAR] | None = None,
        refusal: Callable[[PruningMethod | None], str | None] = lambda method: None,
    ) -> None:
        self.schedule, self.depth = schedule, depth
        self.searched, self.rules = dict(searched or {}), dict(rules or {})
        self.refusal = refusal
        self.configs: list[Configuration] = []
        self.tables: dict[str, list[Entry]] = {}
        self.families: dict[str, list[Configuration]] = {}
        self.left_out: list[tuple[str, str, str]] = []
        self._add_main()
        self._add_ablations()
        if cascade:
            self._add_cascades()

    def __iter__(self) -> Iterator[Configuration]:
        return iter(self.configs)

    def __len__(self) -> int:
        return len(self.configs)

    def __getitem__(self, name: str) -> Configuration:
        return next(config for config in self.configs if config.name == name)

    def table(self, name: str) -> list[Entry]:
        """Label and configuration of everything that a table compares, in its order."""
        return self.tables.get(name, [])

    def references(self, name: str) -> list[Entry]:
        """A plan of each kind that a table has none of, shown beside it for comparison."""
        shown = {config.kind for _, config in self.table(name)}
        known = {config.kind: (label, config) for label, config in self.tables["decomposition"][:4]}
        return [known[kind] for kind in KINDS if kind not in shown]

    def add(
        self,
        table: str,
        label: str,
        pruning: PruningMethod | None,
        tier: str = ABLATION,
        drafted: int = 0,
    ) -> Configuration:
        """Adds a configuration to a table; one that is equal to an earlier one is not measured twice."""
        same = (entry for entry in self.configs if (entry.pruning, entry.drafted) == (pruning, drafted))
        config = next(same, None)
        if config is None:
            name = f"{table}: {label}" if tier == ABLATION else label
            config = Configuration(name, pruning, tier, drafted)
            self.configs.append(config)
        self.tables.setdefault(table, []).append((label, config))
        return config

    def digest(self) -> str:
        """Changes when any configuration does."""
        from stepvar.models.output import as_json_value

        content: list[Any] = [
            [config.name, as_json_value(config.pruning), config.tier, config.drafted] for config in self
        ]
        content += [
            [name, label, entry.name] for name, shown in self.tables.items() for label, entry in shown
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _add_main(self) -> None:
        self.add("decomposition", DENSE, None, CENTRAL)
        self.add("decomposition", SKIP_ONLY, StepVAR(skip=WITH_SKIPS[1]), CENTRAL)
        self.add("decomposition", PRUNE_ONLY, StepVAR(ratios=WITH_SKIPS[0]), CENTRAL)
        for table, scales, note in (("table 1", WITHOUT_SKIPS, ""), ("table 2", WITH_SKIPS, " and skips")):
            self.add(table, DENSE, None)
            self.add(table, SKIP_ONLY, StepVAR(skip=WITH_SKIPS[1]))
            for name, build in self.methods().items():
                self.add(table, f"{name}{note}", build(*scales), CENTRAL if name == OURS else MAIN)
        self.add("decomposition", "prune and skip", StepVAR(*WITH_SKIPS))
        self.add("decomposition", "prune the last two instead", StepVAR(*WITHOUT_SKIPS))
        for name, plan in self.searched.items():
            self.add("decomposition", name, plan, CENTRAL)
        self._add_equal_time()

    def _add_equal_time(self) -> None:
        """Ours at several strengths, and the rivals, each in its own time."""
        bases = {OURS: StepVAR(*WITHOUT_SKIPS)}
        if FAITHFUL in self.searched:
            bases[FAITHFUL] = self.searched[FAITHFUL]
        for family, base in bases.items():
            for stretch in STRETCHES:
                ratios = {scale: round(min(stretch * ratio, 0.95), 4) for scale, ratio in base.ratios.items()}
                label = family if stretch == 1.0 else f"{family}, {stretch:g} of the ratios"
                config = self.add("equal time", label, replace(base, ratios=ratios), MAIN)
                self.families.setdefault(family, []).append(config)
        for name, build in self.methods().items():
            if name != OURS:
                self.add("equal time", name, build(*WITHOUT_SKIPS))

    def _add_ablations(self) -> None:
        ratios = WITHOUT_SKIPS[0]
        for score in SCORERS:
            self.add("selection", score, StepVAR(ratios=ratios, score=score))
        for recovery in ready_recoveries():
            self.add("recovery", recovery, StepVAR(ratios=ratios, recovery=recovery))
        for name, rule in self.rules.items():
            # Registered rules have a row already.
            if not isinstance(rule.score, str):
                self.add("selection", name, replace(rule, ratios=ratios))
            if not isinstance(rule.recovery, str):
                self.add("recovery", name, replace(rule, ratios=ratios))
        for name, variant in VARIANTS.items():
            if variant.stages + variant.dense_end < self.depth:
                self._add_possible("variants", name, variant)
        self.add("others", OURS, StepVAR(*WITHOUT_SKIPS))
        for name, other in OTHERS.items():
            self._add_possible("others", name, other)
        for name, other in FASTERVAR.items():
            self._add_possible("fastervar", name, other)
        self.add("ratio", "0", None)
        for ratio in RATIOS:
            self._add_possible("ratio", f"{ratio:g}", StepVAR(ratios={-2: ratio, -1: ratio}))
        self._add_scales()

    def _add_scales(self) -> None:
        """Pairs of adjacent scales, and the last scales left out."""
        for first in range(1 - len(self.schedule), -1):
            pair = {first: PAIR_RATIO, first + 1: PAIR_RATIO}
            self._add_possible("pairs", pair_label(self.schedule, first), StepVAR(ratios=pair))
        for count in range(1, min(LONGEST_SKIP, len(self.schedule) - 2) + 1):
            label = "last scale" if count == 1 else f"last {count} scales"
            self._add_possible("skips", label, StepVAR(skip=tuple(range(-count, 0))))

    def _add_possible(self, table: str, label: str, method: PruningMethod) -> None:
        """Adds a configuration unless the model cannot run it."""
        reason = self.refusal(method)
        if reason is None:
            self.add(table, label, method)
        else:
            self.left_out.append((table, label, reason))

    def _add_cascades(self) -> None:
        """CoDe: the second model draws the last scale, or the last two, or those with pruning."""
        scales = len(self.schedule)
        for left in (1, 2):
            scale = "the last scale" if left == 1 else f"the last {left} scales"
            self.add("others", f"CoDe, second model draws {scale}", None, drafted=scales - left)
        pruned = StepVAR(ratios=WITHOUT_SKIPS[0])
        self.add("others", "CoDe, the last 2 scales, pruned", pruned, drafted=scales - 2)

    def methods(self) -> dict[str, Build]:
        """Every method of the main tables by its label, ours first."""
        known: dict[str, Build] = {LABELS.get(name, name): partial(with_scales, name) for name in METHODS}
        rules = {name: partial(_with_scales, rule) for name, rule in self.rules.items()}
        return {**known, **BASELINES, **rules}


def _with_scales(rule: StepVAR, ratios: Ratios, skip: Skip) -> StepVAR:
    return replace(rule, ratios=ratios, skip=skip)


def pair_label(schedule: ScaleSchedule, first: int) -> str:
    """Name of two adjacent scales, the first of which is counted from the end."""
    return f"{schedule[len(schedule) + first]}, {schedule[len(schedule) + first + 1]}"


def rivals(configs: list[Entry], ours: str) -> list[Entry]:
    """The other methods of a table: neither ours, nor dense, nor skip only."""
    return [(label, entry) for label, entry in configs if label not in (ours, DENSE, SKIP_ONLY)]
