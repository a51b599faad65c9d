"""Recovery: every position copies its nearest kept token, exactly, and ties have one answer."""

from __future__ import annotations

import resource
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.pruning.interpolation import anchor_positions, bilinear, nearest_anchor, nearest_kept

Grid = tuple[int, int, int]


def brute_force(kept: list[int], grid: Grid, frame_distance: int) -> list[int]:
    """Slot of the nearest kept token of every position; of equals, the first in row-major order."""
    _, height, width = grid

    def place(position: int) -> tuple[int, int, int]:
        return position // (height * width), position // width % height, position % width

    def distance(left: int, right: int) -> int:
        (t, y, x), (u, z, w) = place(left), place(right)
        return (frame_distance * (t - u)) ** 2 + (y - z) ** 2 + (x - w) ** 2

    positions = range(grid[0] * height * width)
    nearest = [min(kept, key=lambda other: (distance(here, other), other)) for here in positions]
    return [kept.index(position) for position in nearest]


@st.composite
def kept_positions(draw, frames: int, batch: int = 1) -> tuple[Grid, list[list[int]]]:
    """A random grid and random kept positions, K of them in each image."""
    grid = (draw(st.integers(1, frames)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    tokens = grid[0] * grid[1] * grid[2]
    count = draw(st.integers(1, tokens))
    order = st.permutations(range(tokens))
    return grid, [sorted(draw(order)[:count]) for _ in range(batch)]


@given(kept_positions(frames=1, batch=2))
@settings(max_examples=120, deadline=None)
def test_pictures_equal_brute_force(drawn):
    grid, kept = drawn
    found = nearest_kept(torch.tensor(kept), grid)
    assert found.tolist() == [brute_force(image, grid, 1) for image in kept]


@given(kept_positions(frames=4), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_clips_equal_brute_force_at_any_frame_distance(drawn, frame_distance):
    grid, kept = drawn
    found = nearest_kept(torch.tensor(kept), grid, frame_distance)
    assert found[0].tolist() == brute_force(kept[0], grid, frame_distance)


def test_ties_go_to_the_first_in_row_major_order():
    # Four kept corners of a 3 x 3 grid: the middle is equally far from all of them.
    found = nearest_kept(torch.tensor([[0, 2, 6, 8]]), (1, 3, 3))
    assert found.tolist() == [[0, 0, 1, 0, 0, 1, 2, 2, 3]]


def test_kept_tokens_copy_themselves():
    kept = torch.tensor([[0, 5, 7, 11], [1, 2, 3, 4]])
    slots = nearest_kept(kept, (1, 3, 4)).gather(1, kept)
    assert slots.tolist() == [[0, 1, 2, 3]] * 2


def test_the_order_of_the_kept_positions_only_renames_the_slots():
    kept, shuffled = torch.tensor([[3, 8, 17, 29]]), torch.tensor([[17, 3, 29, 8]])
    grid = (1, 5, 6)
    expected = kept[0][nearest_kept(kept, grid)[0]]
    assert torch.equal(shuffled[0][nearest_kept(shuffled, grid)[0]], expected)


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("grid", [(1, 317, 317), (21, 60, 84), (1, 25, 4000)])
def test_a_hundred_thousand_tokens_take_seconds_and_little_memory(grid):
    tokens = grid[0] * grid[1] * grid[2]
    generator = torch.Generator().manual_seed(0)
    kept = torch.randperm(tokens, generator=generator)[: tokens // 4].sort().values[None]
    before, start = peak_mebibytes(), time.process_time()
    found = nearest_kept(kept, grid, 2)
    assert time.process_time() - start < 10
    assert peak_mebibytes() - before < 200, "a table of all pairs has 20,000"
    some = torch.randint(tokens, (50,), generator=generator)
    sides, weights = torch.tensor([grid[1] * grid[2], grid[2], 1]), torch.tensor([4, 1, 1])
    here, there = (part[:, None] // sides % torch.tensor(grid) for part in (some, kept[0]))
    distance = ((here[:, None] - there[None]).square() * weights).sum(-1)
    assert torch.equal(found[0, some], distance.argmin(dim=1))


def test_time_grows_about_linearly():
    def seconds(side: int) -> float:
        kept = torch.arange(0, side * side, 3)[None]
        runs = []
        for _ in range(3):
            start = time.process_time()
            nearest_kept(kept, (1, side, side))
            runs.append(time.process_time() - start)
        return min(runs)

    seconds(64)
    # 16 times the tokens; quadratic growth would be 256 times the time.
    assert seconds(320) < 110 * max(seconds(80), 1e-4)


def test_a_grid_beyond_the_keys_is_refused():
    with pytest.raises(ValueError, match="too large for exact recovery"):
        nearest_kept(torch.tensor([[0]]), (1, 2**20, 2**20))


@pytest.mark.parametrize(
    ("grid", "stride", "expected"),
    [
        ((1, 3, 3), 3, [4]),
        ((1, 6, 7), 3, [8, 11, 29, 32]),
        ((1, 1, 5), 4, [2]),
        ((1, 1, 1), 3, [0]),
        ((2, 3, 3), 3, [4, 13]),
        ((1, 4, 4), 2, [5, 7, 13, 15]),
    ],
)
def test_anchors_lie_on_a_uniform_grid_in_every_frame(grid, stride, expected):
    assert anchor_positions(grid, stride) == expected


@given(kept_positions(frames=2), st.integers(2, 4))
@settings(max_examples=80, deadline=None)
def test_only_anchors_are_copied(drawn, stride):
    grid, kept = drawn
    anchors = anchor_positions(grid, stride)
    kept = sorted({*kept[0], *anchors})
    slots = nearest_anchor(torch.tensor([kept]), grid, stride)[0].tolist()
    nearest = brute_force(anchors, grid, 1)
    for position, slot in enumerate(slots):
        copied = position if position in kept else anchors[nearest[position]]
        assert kept[slot] == copied


@given(kept_positions(frames=2, batch=2))
@settings(max_examples=80, deadline=None)
def test_bilinear_recovery_weighs_the_kept_neighbours(drawn):
    (frames, height, width), kept = drawn
    grid, index = (frames, height, width), torch.tensor(kept)
    values = torch.randn(2, index.shape[1], 3, generator=torch.Generator().manual_seed(0))
    slots = nearest_kept(index, grid)
    dense = bilinear(values, index, slots, grid)
    for row, positions in enumerate(kept):
        for position in range(frames * height * width):
            frame, y, x = position // (height * width), position // width % height, position % width
            near = {
                slot: (2 - abs(y - other // width % height)) * (2 - abs(x - other % width))
                for slot, other in enumerate(positions)
                if other // (height * width) == frame
                and max(abs(y - other // width % height), abs(x - other % width)) <= 1
            }
            expected = values[row, slots[row, position]]
            if position not in positions and near:
                expected = sum(weight * values[row, slot] for slot, weight in near.items())
                expected = expected / sum(near.values())
            torch.testing.assert_close(dense[row, position], expected)
