"""How much is measured: counts that fit a time, fixed before the first measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

QUICK_MINUTES = 2.0
DEFAULT_MINUTES = 55.0

LARGEST_CENTRAL = 1008
LARGEST_ABLATION = 240

SHARES = {"central": 0.42, "main": 0.2, "ablation": 0.2, "rounds": 0.08, "phenomena": 0.05, "diversity": 0.05}
"""Of the time, once everything was measured the fewest times."""


@dataclass(frozen=True)
class Protocol:
    """Counts of one report.

    Attributes:
        batch: Pictures drawn at a time; a block of pictures is one batch of every contestant.
        central_blocks, main_blocks, ablation_blocks: Blocks of the contestants of each rank; all of them are
            the first ones.
        rounds: Interleaved rounds of timing, one picture at a time.
        phenomena: Pictures of each experiment about why pruning works.
        diversity_prompts, diversity_seeds: Prompts, and pictures of each.
        gallery: Prompts shown as pictures.
        seed: Chooses the prompts; the pictures' seeds count on from it.
    """

    batch: int = 8
    central_blocks: int = 75
    main_blocks: int = 25
    ablation_blocks: int = 8
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
        if not self.central_blocks >= self.main_blocks >= self.ablation_blocks:
            raise ValueError(
                f"A report cannot have {self.central_blocks} blocks of central contestants, "
                f"{self.main_blocks} of main ones and {self.ablation_blocks} of ablations: each may have as "
                "many as the one before, or fewer."
            )

    def blocks(self, rank: str) -> int:
        """Blocks of the contestants of a rank, see `stepvar.report.contestants.RANKS`."""
        return {"central": self.central_blocks, "main": self.main_blocks}.get(rank, self.ablation_blocks)

    @property
    def pictures(self) -> int:
        """Prompts of the central contestants."""
        return self.batch * self.central_blocks

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pace:
    """How long things take here.

    Attributes:
        single: Seconds of one dense picture drawn alone.
        batched: Of one dense picture of a batch.
        judging: Of measuring one picture.
        costs: Dense pictures that all contestants of a rank cost together, the cheaper ones counted as less.
        counts: How many there are.
        scales: Scales of a dense run.
    """

    single: float
    batched: float
    judging: float
    costs: Mapping[str, float]
    counts: Mapping[str, int]
    scales: int

    def picture(self, rank: str) -> float:
        """Seconds of one prompt drawn by all contestants of a rank."""
        return self.costs[rank] * self.batched + self.counts[rank] * self.judging

    @property
    def round(self) -> float:
        """Seconds of one picture by every contestant, alone."""
        return self.single * sum(self.costs.values())

    @property
    def why(self) -> float:
        """Seconds of the experiments about why pruning works, on one picture."""
        return self.batched * (2 * self.scales + 10)

    @property
    def seeds(self) -> float:
        """Seconds of one seed of one prompt of the diversity."""
        return self.costs["central"] * self.batched


def protocol_for(minutes: float, pace: Pace) -> Protocol:
    """The largest protocol that should fit a time.

    Everything is measured at least once; a slow machine gets smaller blocks, and may take longer.
    """
    gallery = 3 if minutes > QUICK_MINUTES else 1
    everything = sum(pace.picture(rank) for rank in pace.costs)
    # The gallery, a round of times and the memory draw about everything once.
    fixed = (gallery + 1.5) * pace.round + 2 * pace.why + 2 * 3 * pace.seeds
    left = 60.0 * minutes - fixed
    batch = next((size for size in (8, 4) if size * everything < 0.4 * left), 2)
    left = max(left - batch * everything, 0.0)

    def more(part: str, seconds: float) -> float:
        return SHARES[part] * left / seconds

    ablation = _between(1, 1 + more("ablation", batch * pace.picture("ablation")), LARGEST_ABLATION // batch)
    main = _between(ablation, 1 + more("main", batch * pace.picture("main")), LARGEST_CENTRAL // batch)
    central = _between(main, 1 + more("central", batch * pace.picture("central")), LARGEST_CENTRAL // batch)
    prompts = _between(2, 1 + more("diversity", 6 * pace.seeds), 24)
    return Protocol(
        batch=batch,
        central_blocks=central,
        main_blocks=main,
        ablation_blocks=ablation,
        rounds=_between(1, 1 + more("rounds", pace.round), 15),
        phenomena=_between(2, 2 + more("phenomena", pace.why), 32),
        diversity_prompts=prompts,
        diversity_seeds=6 if prompts > 2 else 3,
        gallery=gallery,
    )


def _between(least: int, value: float, most: int) -> int:
    return max(least, min(int(value), most))
