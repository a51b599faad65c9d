"""From scores to kept positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.generation.plan import kept_tokens
from stepvar.pruning.selection import keep_highest

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=40)


@given(SCORES, st.data())
@settings(max_examples=150, deadline=None)
def test_the_highest_are_kept_in_order_of_position(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    kept = keep_highest(torch.tensor([scores], dtype=torch.float32), count)[0].tolist()
    best = sorted(range(len(scores)), key=lambda position: (-scores[position], position))[:count]
    assert kept == sorted(best), "of equal scores the first position wins"


def test_images_are_selected_apart():
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0], [5.0, 0.0, 0.0, 7.0]])
    assert keep_highest(scores, 2).tolist() == [[1, 2], [0, 3]]


def test_equal_scores_keep_the_first_positions_also_when_there_are_many():
    assert keep_highest(torch.zeros(2, 5000), 1234)[1].tolist() == list(range(1234))


@given(st.integers(1, 5000), st.floats(0, 1, allow_nan=False))
@settings(max_examples=150, deadline=None)
def test_kept_counts_stay_within_the_ratio(tokens, ratio):
    kept = kept_tokens(tokens, ratio)
    assert 1 <= kept <= tokens
    assert kept >= (1 - ratio) * tokens - 1e-6, "never more is pruned than was asked for"
    assert kept == 1 or kept < (1 - ratio) * tokens + 1


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"),
    [(1024, 0.4, 615), (1600, 0.5, 800), (4096, 0.75, 1024), (2304, 0.5, 1152), (7, 0.0, 7), (100, 0.29, 71)],
)
def test_kept_counts_of_known_scales(tokens, ratio, kept):
    assert kept_tokens(tokens, ratio) == kept


def test_ratios_that_floats_cannot_hold_are_not_rounded_down():
    for tenths in range(11):
        assert kept_tokens(10, tenths / 10) == max(10 - tenths, 1)
        assert kept_tokens(1000, tenths / 10) == max(1000 - 100 * tenths, 1)
