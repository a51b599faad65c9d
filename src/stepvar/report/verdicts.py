"""A claim of the paper, what became of it here, and how sure that is."""

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

LEAST_PHENOMENA = 8
"""The same for why pruning works: effects many times as large as their spread from picture to picture."""


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        text: What the paper says.
        source: Where.
        verdict: "held", "did not hold" or "undecided".
        evidence: Our numbers, in a sentence.
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


def tell(interval: Interval, digits: int = 2, unit: str = "") -> str:
    """An interval in words: "1.52 (1.48 to 1.57)"."""
    numbers = [f"{value:.{digits}f}" for value in (interval.value, interval.low, interval.high)]
    return f"{numbers[0]}{unit} ({numbers[1]} to {numbers[2]})"


def scaled(interval: Interval, factor: float) -> Interval:
    """An interval in another unit."""
    return Interval(factor * interval.value, factor * interval.low, factor * interval.high, interval.n)
