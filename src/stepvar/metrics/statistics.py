"""Bootstrap intervals, paired wherever two methods were measured on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 2_000
_NORMAL_QUANTILE = 1.959964

Resampled = Callable[[NDArray[np.intp]], float]
"""A statistic of the pictures at some places, with repeats."""


@dataclass(frozen=True)
class Interval:
    """A number with the interval that holds 95 % of its bootstrap resamples.

    Attributes:
        value: The number itself.
        low, high: The interval; equal to the value when there is nothing to resample.
        n: Units that were resampled.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        return self.low > 0.0

    @property
    def below_zero(self) -> bool:
        return self.high < 0.0

    @property
    def excludes_zero(self) -> bool:
        return self.above_zero or self.below_zero

    def format(self, digits: int = 2, unit: str = "") -> str:
        """As text: "1.52 (1.48 to 1.57)"."""
        return f"{self.value:.{digits}f}{unit} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit."""
        return Interval(factor * self.value, factor * self.low, factor * self.high, self.n)

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def resamples(count: int, repeats: int = RESAMPLES, seed: int = 0) -> Iterator[NDArray[np.intp]]:
    """Places of `count` units drawn with replacement; the same ones at every call, so that pairs stay pairs.

    Raises:
        ValueError: When there is nothing to draw from.
    """
    if count < 1:
        raise ValueError("An interval needs at least one measurement; there is none.")
    random = np.random.default_rng(seed)
    for _ in range(repeats):
        yield random.integers(0, count, count)


def mean_interval(values: ArrayLike) -> Interval:
    """The mean of independent measurements; pass differences for a paired comparison.

    Raises:
        ValueError: When there is no measurement.
    """
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    if count < 1:
        raise ValueError("An interval needs at least one measurement; there is none.")
    # All resamples at once, in blocks of bounded memory.
    block = max(1, 4_000_000 // count)
    random = np.random.default_rng(0)
    means = np.concatenate(
        [
            array[random.integers(0, count, (min(block, RESAMPLES - start), count))].mean(axis=1)
            for start in range(0, RESAMPLES, block)
        ]
    )
    low, high = _percentiles(means)
    return Interval(float(array.mean()), low, high, count)


def paired_interval(first: ArrayLike, second: ArrayLike) -> Interval:
    """Mean of first - second, measured on the same units in the same order.

    Raises:
        ValueError: When the numbers of units differ.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"A paired comparison needs equal numbers; got {len(left)} and {len(right)}.")
    return mean_interval(left - right)


def statistic_interval(
    statistic: Resampled, count: int, repeats: int = 200, centred: bool = False
) -> Interval:
    """Interval of any statistic of `count` units.

    Args:
        statistic: Computes it from the places of the units.
        count: Units.
        repeats: Resamples.
        centred: Moves the interval so that the mean of the resamples falls on the value: for statistics
            that repeats of a unit push to one side, as they do a Fréchet distance.
    """
    value = statistic(np.arange(count))
    drawn = np.array([statistic(places) for places in resamples(count, repeats)])
    return drawn_interval(value, drawn, count, centred)


def drawn_interval(value: float, drawn: NDArray[np.float64], count: int, centred: bool = False) -> Interval:
    """Interval of a statistic from its resamples; arguments as of `statistic_interval`."""
    low, high = _percentiles(drawn)
    shift = value - float(drawn.mean()) if centred else 0.0
    return Interval(value, low + shift, high + shift, count)


def normal_interval(value: float, drawn: NDArray[np.float64], count: int) -> Interval:
    """Interval of a statistic from few resamples, by their standard deviation.

    With B resamples the width has a standard error of 1 / sqrt(2 (B - 1)), 16 % for 20; percentiles of so
    few would be far less certain.
    """
    reach = _NORMAL_QUANTILE * float(drawn.std(ddof=1))
    return Interval(value, value - reach, value + reach, count)


def median_ratio_interval(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Ratio of two medians of interleaved rounds, such as a speed-up; a round stays a pair.

    Raises:
        ValueError: When the numbers of rounds differ.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if top.shape != bottom.shape:
        raise ValueError(f"A ratio needs equal numbers of rounds; got {len(top)} and {len(bottom)}.")
    if not len(top):
        raise ValueError("An interval needs at least one measurement; there is none.")
    places = np.random.default_rng(0).integers(0, len(top), (RESAMPLES, len(top)))
    low, high = _percentiles(np.median(top[places], axis=1) / np.median(bottom[places], axis=1))
    return Interval(float(np.median(top) / np.median(bottom)), low, high, len(top))


def _percentiles(drawn: NDArray[np.float64]) -> tuple[float, float]:
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(drawn, (tail, 100.0 - tail))
    return float(low), float(high)
