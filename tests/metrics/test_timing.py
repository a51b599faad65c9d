"""Interleaved measurements."""

from __future__ import annotations

import pytest

from stepvar.metrics.timing import Spread, interleaved


def test_contestants_take_turns_and_the_first_round_does_not_count():
    calls = []
    samples = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert [len(sample.seconds) for sample in samples.values()] == [3, 3]
    assert all(second >= 0 for sample in samples.values() for second in sample.seconds)


def test_results_are_kept():
    numbers = iter(range(10))
    samples = interleaved({"a": lambda: next(numbers)}, repeats=2)
    assert samples["a"].results == [1, 2]


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="at least one"):
        interleaved({"a": lambda: None}, repeats=0)


def test_spread():
    assert Spread.of([2.0]).as_json() == {"min": 2.0, "q1": 2.0, "median": 2.0, "q3": 2.0, "max": 2.0}
    spread = Spread.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (spread.minimum, spread.lower_quartile, spread.median) == (1.0, 2.0, 3.0)
    assert (spread.upper_quartile, spread.maximum) == (4.0, 5.0)
