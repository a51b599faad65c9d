"""Intervals: they cover what they should, pair what belongs together, and refuse what is empty."""

from __future__ import annotations

import numpy as np
import pytest

from stepvar.metrics.statistics import (
    mean_interval,
    median_ratio_interval,
    paired_interval,
    statistic_interval,
)


def test_a_mean_and_its_interval():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    interval = mean_interval(values)
    assert interval.value == pytest.approx(values.mean()) and interval.n == 400
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        interval = mean_interval(random.normal(0.0, 1.0, 40))
        hits += interval.low <= 0.0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_removes_what_both_share():
    random = np.random.default_rng(2)
    shared = random.normal(0.0, 10.0, 60)
    better, worse = shared + 0.5 + random.normal(0, 0.1, 60), shared
    paired = paired_interval(better, worse)
    assert paired.above_zero and paired.value == pytest.approx(0.5, abs=0.05)
    assert not mean_interval(better).excludes_zero
    assert paired_interval(worse, better).below_zero


def test_the_same_call_gives_the_same_interval():
    values = np.random.default_rng(3).random(30)
    assert mean_interval(values) == mean_interval(values.tolist())


def test_any_statistic():
    values = np.arange(101.0)
    interval = statistic_interval(lambda places: float(np.median(values[places])), 101)
    assert interval.value == 50.0 and 30 < interval.low < 50 < interval.high < 70


def test_a_ratio_of_medians_keeps_rounds_together():
    rounds = np.random.default_rng(4).uniform(1.0, 3.0, 9)  # the machine's moods
    ratio = median_ratio_interval((2.0 * rounds).tolist(), rounds.tolist())
    assert ratio.value == pytest.approx(2.0) and ratio.low == pytest.approx(2.0) == ratio.high


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([]), "at least one"),
        (lambda: paired_interval([1.0], [1.0, 2.0]), "equal numbers"),
        (lambda: median_ratio_interval([1.0], [1.0, 2.0]), "equal numbers"),
        (lambda: median_ratio_interval([], []), "at least one"),
        (lambda: statistic_interval(lambda places: 0.0 * len(places), 0), "at least one"),
    ],
)
def test_what_cannot_be_told_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
