"""A claim of the paper with its verdict, and the rules by which verdicts are reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepvar.metrics.statistics import Interval

HELD, FAILED, OPEN = "held", "did not hold", "undecided"

LEAST_PICTURES, LEAST_PROMPTS, LEAST_ROUNDS = 40, 4, 3
"""Bootstrap intervals of fewer measurements are too narrow to decide anything, and Fréchet distances need
more pictures than there are features: 32 with the embedded model's tokenizer."""

TOLERATED_POINTS = 2.0
"""Of scene score that a plan may lose."""

LEAST_ANALYSED = 8
"""Pictures that decide a claim about why pruning works: effects many times as large as their spread."""


@dataclass(frozen=True)
class Claim:
    """One claim and its verdict.

    Attributes:
        text: The paper's statement.
        source: Its place in the paper.
        verdict: "held", "did not hold" or "undecided".
        evidence: The measured numbers, in a sentence.
    """

    text: str
    source: str
    verdict: str
    evidence: str

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def verdict_of(yes: bool, no: bool, n: int, least: int = LEAST_PICTURES) -> str:
    """Undecided where the interval allows both answers, or where it rests on too few measurements."""
    if n < least:
        return OPEN
    return HELD if yes else FAILED if no else OPEN


def above(interval: Interval, bound: float, least: int = LEAST_PICTURES) -> str:
    """The verdict on a value that must lie above a bound."""
    return verdict_of(interval.low > bound, interval.high < bound, interval.n, least)


def at_least(interval: Interval, bound: float, least: int = LEAST_PICTURES) -> str:
    """The verdict on a value that may also be the bound itself."""
    return verdict_of(interval.low >= bound, interval.high < bound, interval.n, least)
