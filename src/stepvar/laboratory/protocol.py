"""How much is measured: counts that fit a time, fixed before the first measurement."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

QUICK_MINUTES = 2.0
DEFAULT_MINUTES = 55.0

LARGEST_MAIN = 1008
LARGEST_ABLATION = 240


@dataclass(frozen=True)
class Protocol:
    """Counts of one report.

    Attributes:
        batch: Pictures drawn at a time; a block of pictures is one batch of every contestant.
        main_blocks: Blocks of the main contestants.
        ablation_blocks: Blocks on which the ablations run too; the first ones.
        rounds: Interleaved rounds of timing, one picture at a time.
        phenomena: Pictures of each experiment about why pruning works.
        diversity_prompts, diversity_seeds: Prompts, and pictures of each.
        gallery: Prompts shown as pictures.
        seed: Chooses the prompts; the pictures' seeds count on from it.
    """

    batch: int = 8
    main_blocks: int = 63
    ablation_blocks: int = 12
    rounds: int = 7
    phenomena: int = 8
    diversity_prompts: int = 8
    diversity_seeds: int = 6
    gallery: int = 3
    seed: int = 2026

    def __post_init__(self) -> None:
        for entry in fields(self):
            least = 2 if entry.name == "diversity_seeds" else 0 if entry.name == "seed" else 1
            if getattr(self, entry.name) < least:
                raise ValueError(
                    f"{entry.name} is {getattr(self, entry.name)}; a report needs {least} or more."
                )
        if self.ablation_blocks > self.main_blocks:
            raise ValueError("A report cannot have more blocks of ablations than of main contestants.")

    @property
    def pictures(self) -> int:
        """Prompts of the main tables."""
        return self.batch * self.main_blocks

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pace:
    """How long things take here, in seconds.

    Attributes:
        single: One dense picture drawn alone.
        batched: One dense picture of a batch.
        judging: Measuring one picture.
        main: Dense pictures that the main contestants cost together, the cheaper ones counted as less.
        ablations: The same of all others.
        contestants: How many there are.
        scales: Scales of a dense run.
    """

    single: float
    batched: float
    judging: float
    main: float
    ablations: float
    contestants: int
    scales: int


def protocol_for(minutes: float, pace: Pace) -> Protocol:
    """The largest protocol that should fit a time: half of it for the main tables.

    One block of everything is the least there is, so a slow machine gets smaller blocks.
    """
    budget = 60.0 * minutes
    main_cost = pace.main * pace.batched + 0.3 * pace.contestants * pace.judging
    ablation_cost = pace.ablations * pace.batched + 0.7 * pace.contestants * pace.judging
    batch = next((size for size in (8, 4) if size * (main_cost + ablation_cost) < 0.4 * budget), 2)
    per_main, per_ablation = batch * main_cost, batch * ablation_cost
    per_round = pace.single * (pace.main + pace.ablations)
    main = _between(1, 0.5 * budget / per_main, LARGEST_MAIN // batch)
    ablation = _between(1, 0.25 * budget / per_ablation, min(LARGEST_ABLATION // batch, main))
    phenomena = _between(2, 0.06 * budget / (pace.batched * (pace.scales + 6)), 32)
    prompts = _between(2, 0.05 * budget / (4 * 6 * pace.batched), 24)
    return Protocol(
        batch=batch,
        main_blocks=main,
        ablation_blocks=ablation,
        rounds=_between(1, 0.1 * budget / per_round, 15),
        phenomena=phenomena,
        diversity_prompts=prompts,
        diversity_seeds=6 if prompts > 2 else 3,
        gallery=3 if minutes > QUICK_MINUTES else 1,
    )


def _between(least: int, value: float, most: int) -> int:
    return max(least, min(int(value), most))
