"""Schedules, parts of a map, and what grows along the scales."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepvar.models.hart.official import PUBLISHED_SIDES
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.sizes import official_top_k, part_counts, progress, scale_schedule

SCHEDULE = scale_schedule([(side, side) for side in PUBLISHED_SIDES])


def test_the_published_schedule_and_its_official_settings():
    assert SCHEDULE.tokens == 9451
    assert official_top_k(SCHEDULE) == (600,) * 7 + (300,) * 7
    shares = progress(SCHEDULE)
    assert shares[:2] == [0.0, pytest.approx(1 / 13)]
    assert shares[12] == shares[13] == pytest.approx(12 / 13), "the last scale keeps the share before it"
    weights = make_guidance(5.5, SCHEDULE).weights
    assert weights[0] == 1.0
    assert weights[-1] == pytest.approx(1 + 4.153846, abs=1e-6)
    assert make_guidance([3.0] * 14, SCHEDULE).weights == (3.0,) * 14
    assert not make_guidance(1.0, SCHEDULE).active


def test_parts_share_what_belongs_to_their_map():
    schedule = scale_schedule([(side, side) for side in PUBLISHED_SIDES], parts=3)
    assert [scale.part for scale in schedule][-3:] == part_counts(4096, 3)
    assert progress(schedule)[-4:] == [12 / 13] * 4
    assert official_top_k(schedule)[-3:] == (300,) * 3
    assert make_sampling(schedule, 1.0, None, 0.0, True).smoothing == tuple(progress(schedule))
    assert schedule.tokens == SCHEDULE.tokens


@given(st.integers(1, 5000), st.integers(1, 64))
def test_parts_are_never_empty_and_cover_the_map(tokens, parts):
    try:
        counts = part_counts(tokens, parts)
    except ValueError as error:
        assert "use fewer" in str(error)
        return
    assert len(counts) == parts
    assert min(counts) >= 1
    assert sum(counts) == tokens


def test_the_golden_split():
    assert part_counts(36, 2) == [11, 25]


@pytest.mark.parametrize("parts", [0, -1, 37])
def test_impossible_parts_are_refused(parts):
    with pytest.raises(ValueError, match="use fewer"):
        part_counts(36, parts)


@pytest.mark.parametrize(
    "arguments", [(0.0, None, 0.0), (1.0, -1, 0.0), (1.0, None, 1.5), ([1.0], None, 0.0)]
)
def test_sampling_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match=r"temperature|top_k"):
        make_sampling(SCHEDULE, *arguments, smooth=True)
