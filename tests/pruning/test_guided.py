"""Recovery guided by likeness: exact where it can be, between its neighbours elsewhere, true to edges."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.generation.tokens import gather_tokens
from stepvar.pruning.guided import RADIUS, guided_gains
from stepvar.pruning.interpolation import nearest_kept

GRIDS = st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7))


def random_case(grid, share, seed, channels=5, rows=2):
    generator = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1] * grid[2]
    kept = max(1, round(share * tokens))
    order = torch.rand(rows, tokens, generator=generator).argsort(dim=1)
    index = order[:, :kept].sort(dim=1).values
    base = torch.randn(rows, tokens, channels, generator=generator)
    gains = torch.randn(rows, kept, channels, generator=generator)
    return base, gains, index, nearest_kept(index, grid)


@given(GRIDS, st.floats(0.0, 1.0), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_kept_tokens_have_their_own_and_others_lie_between_kept_ones(grid, share, seed):
    base, gains, index, slots = random_case(grid, share, seed)
    found = guided_gains(base, gains, index, slots, grid)
    assert torch.equal(gather_tokens(found, index), gains)
    assert (found <= gains.amax(dim=1, keepdim=True) + 1e-5).all()
    assert (found >= gains.amin(dim=1, keepdim=True) - 1e-5).all()
    same = torch.ones_like(gains) * torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    expected = same[:, :1].expand_as(base)
    torch.testing.assert_close(guided_gains(base, same, index, slots, grid), expected)


@given(GRIDS, st.floats(0.0, 1.0), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_rows_are_apart_and_the_level_of_the_features_does_not_matter(grid, share, seed):
    base, gains, index, slots = random_case(grid, share, seed)
    found = guided_gains(base, gains, index, slots, grid)
    alone = guided_gains(base[1:], gains[1:], index[1:], slots[1:], grid)
    torch.testing.assert_close(found[1:], alone)
    moved = guided_gains(10.0 * base + 3.0, gains, index, slots, grid)
    torch.testing.assert_close(moved, found, rtol=1e-3, atol=1e-3)


def test_an_edge_is_not_smeared():
    """Two flat halves: a pruned position at the edge takes from its own side, though the other is nearer."""
    grid = (1, 3, 8)
    left = (torch.arange(24) % 8 < 4)[None, :, None]
    base = torch.where(left, 1.0, -1.0).expand(1, 24, 4)
    index = torch.tensor([[1, 4, 9, 12, 17, 20]])
    gains = torch.where(left, 5.0, -5.0).expand(1, 24, 1)[:, index[0]].expand(1, 6, 4)
    slots = nearest_kept(index, grid)
    at_edge = 3  # row 0: the token right of it, on the other side, is nearer than the one on its own
    assert gather_tokens(gains, slots)[0, at_edge, 0] == -5.0
    assert guided_gains(base, gains, index, slots, grid)[0, at_edge, 0] > 4.9


def test_out_of_reach_the_nearest_is_copied():
    grid = (1, 1, 12)
    base, gains, index, slots = random_case(grid, 0.0, 3)
    index = torch.zeros_like(index)
    slots = nearest_kept(index, grid)
    found = guided_gains(base, gains, index, slots, grid)
    assert torch.equal(found[:, RADIUS + 1 :], gains.expand(-1, 12 - RADIUS - 1, -1))
