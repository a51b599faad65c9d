"""FastVAR: where it prunes, what each branch keeps, what fills the rest; golden cases prove the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.conformance.fastvar import WatchedFastVAR
from stepvar.generation.plan import kept_tokens
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.sizes import SizeTable
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.interpolation import area_resized
from tiny_models import SMALL, draw, make_text

LATE = {-2: 0.4, -1: 0.6}


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(2, (1, 2)), (3, (1, 3)), (6, (1, 5)), (8, (1, 7)), (16, (2, 14)), (32, (3, 28)), (40, (4, 35))],
)
def test_layers_are_the_published_ones_or_their_share_of_a_smaller_model(depth, layers):
    entry = FastVAR(ratios=LATE).plan(SMALL, depth)[5]
    assert (entry.first_layer, entry.last_layer) == layers


def test_layers_can_be_named():
    entry = FastVAR(ratios=LATE, first_layer=0, dense_end=0).plan(SMALL, 4)[5]
    assert [entry.tokens(layer) for layer in range(4)] == [48] * 4
    entry = FastVAR(ratios=LATE, first_layer=1, dense_end=2).plan(SMALL, 4)[5]
    assert [entry.tokens(layer) for layer in range(4)] == [120, 48, 120, 120]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (FastVAR(ratios=LATE, first_layer=4), r"first_layer 4 and dense_end 0 no layer of 4 is pruned"),
        (FastVAR(ratios=LATE, dense_end=3), r"first_layer 1 and dense_end 3 .* dense_end may be 0 to 2"),
        (FastVAR(ratios=LATE, dense_end=-1), r"dense_end -1"),
        (FastVAR(ratios=LATE, first_layer=-1), r"first_layer is -1; a model of 4 layers has 0 to 3"),
        (
            FastVAR(ratios=LATE, cache_scale=9),
            r"cache_scale names scale 9x7, .*: those are 1x1, 2x2, 4x3, 6x5",
        ),
        (FastVAR(ratios=LATE, skip=(6,), cache_scale=6), r"cache_scale names scale 6x5, which does not run"),
        (FastVAR(ratios=LATE, cache_scale=5), r"No scale is 5 tokens high"),
    ],
)
def test_what_cannot_run_is_refused_in_words(method, words):
    with pytest.raises(ValueError, match=words):
        method.plan(SMALL, 4)


def test_the_cache_scale_is_the_last_full_one_before_pruning():
    square = SizeTable.published().schedule(1.0, "1M")
    preset = PRESETS["fastvar"].method
    plan = preset.plan(square, 32)
    assert square[preset.cache_index(plan)].grid == (1, 24, 24)
    assert [entry.kept for entry in plan.scales[-4:]] == [615, 800, 0, 0]
    assert [entry.skipped for entry in plan.scales] == [False] * 11 + [True] * 2
    skipping = FastVAR(ratios=LATE, skip=(6,))
    assert skipping.cache_index(skipping.plan(SMALL, 4)) == 2
    named = FastVAR(ratios=LATE, cache_scale=4)
    assert named.cache_index(named.plan(SMALL, 4)) == 2


@pytest.mark.parametrize("budget", ["0.06M", "0.25M", "0.60M", "1M"])
def test_every_aspect_ratio_prunes_the_same_share(budget):
    table = SizeTable.published()
    for template in (1.0, 1.25, 0.8, 1.333, 0.75, 1.5, 0.666, 1.75, 0.571, 2.0, 0.5, 2.5, 0.4, 3.0, 0.333):
        schedule = table.schedule(template, budget)
        plan = PRESETS["fastvar"].method.plan(schedule, 32)
        late = plan.scales[-4:]
        assert [entry.skipped for entry in late] == [False, False, True, True]
        expected = [
            kept_tokens(entry.scale.tokens, ratio) for entry, ratio in zip(late[:2], (0.4, 0.5), strict=True)
        ]
        assert [entry.kept for entry in late[:2]] == expected
        assert not any(entry.prunes or entry.skipped for entry in plan.scales[:-4])


def watched_run(transformer, **arguments):
    """A run, and what the method showed: (what, scale, layer, branch) -> tensor."""
    seen = {}

    def watch(what, scale, layer, branch, tensor):
        seen[what, scale, layer, branch] = tensor

    fields = {"ratios": LATE, **arguments.pop("fields", {})}
    return draw(transformer, pruning=WatchedFastVAR(watcher=watch, **fields), **arguments), seen


def test_every_row_and_branch_keeps_its_own_tokens(transformer):
    drawing, seen = watched_run(transformer, text=make_text(4, 7), seeds=[0, 1])
    kept = {key[1:]: tensor for key, tensor in seen.items() if key[0] == "kept"}
    branches = ("self_attention", "cross_attention", "feed_forward")
    assert kept.keys() == {(scale, layer, name) for scale in (4, 5) for layer in (1, 2) for name in branches}
    for (scale, _, _), index in kept.items():
        assert index.shape == (4, {4: 38, 5: 48}[scale])
    for (scale, layer, name), index in kept.items():
        scores = seen["scores", scale, layer, name]
        lowest = scores.gather(1, index).amin(dim=1)
        assert ((scores >= lowest[:, None]).sum(dim=1) == index.shape[1]).all(), "the highest scores"
    copies = [index.chunk(2) for index in kept.values()]
    assert any(not torch.equal(*pair) for pair in copies), "the copies of guidance choose apart"
    assert len({str(kept[5, 2, name].tolist()) for name in branches}) > 1, "every branch scores anew"
    assert torch.equal(drawing.reports[5].kept_index, kept[5, 1, "self_attention"][:2])
    assert drawing.reports[3].kept_index is None


def test_hidden_states_stay_dense_and_only_kept_tokens_are_cached(transformer):
    drawing, _ = watched_run(transformer)
    assert drawing.layer_tokens[5] == [120] * 3
    plan = FastVAR(ratios=LATE).plan(SMALL, 3)
    assert drawing.cache_lengths == [(plan.cached_tokens(layer),) * 2 for layer in range(3)]
    assert plan.cached_tokens(0) - plan.cached_tokens(1) == 25 + 72


def test_pruned_positions_get_the_cached_branch(transformer):
    """One layer by hand: its branches on what they kept, the rest from the scale before."""
    drawing, seen = watched_run(transformer)
    session, scale, entering = drawing.session, SMALL[5], drawing.tensors["layer 0", 5]
    _, tokens = session.embed(scale, slice(0, 2))
    cached = {
        name: tensor for (what, _, layer, name), tensor in seen.items() if (what, layer) == ("cache", 1)
    }
    memory = session.cache[1]
    memory.length -= 48
    for name, branch in session.branches(1, memory, slice(0, 2)):
        index = seen["kept", 5, 1, name]
        output = area_resized(cached[name], SMALL[3].grid, scale.grid).clone()
        narrow = tokens.narrow(index)
        picked = torch.stack([row[positions] for row, positions in zip(entering, index, strict=True)])
        computed = branch(picked, narrow)
        for row, positions in enumerate(index):
            output[row, positions] = computed[row]
        entering = entering + output
    torch.testing.assert_close(entering, drawing.tensors["layer 1", 5])


def test_the_cache_lives_as_long_as_the_generation(transformer):
    """Tall after wide and wide after tall: what fills never comes from the picture before."""
    wide = ScaleSchedule.from_grids([(1, 1), (2, 3), (4, 6), (6, 9), (8, 12)])
    tall = ScaleSchedule.from_grids([(1, 1), (3, 2), (6, 4), (9, 6), (12, 8)])
    pruning = FastVAR(ratios=LATE)
    first = {name: draw(transformer, name, pruning=pruning).fingerprint() for name in (wide, tall)}
    second = {name: draw(transformer, name, pruning=pruning).fingerprint() for name in (tall, wide)}
    assert first == second


def test_released_copies_need_no_cache_of_their_own(transformer):
    weights = [3.0, 3.0, 3.0, 3.0, 1.0, 1.0]
    settings_ = {"guidance": weights, "pruning": FastVAR(ratios=LATE)}
    released, carried = draw(transformer, **settings_), draw(transformer, release=False, **settings_)
    assert [report.rows for report in released.reports] == [2, 2, 2, 2, 1, 1]
    torch.testing.assert_close(released.result.latent, carried.result.latent)


GRIDS = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6))


@given(GRIDS, GRIDS)
@settings(max_examples=60, deadline=None)
def test_areas_are_averaged_window_by_window(grid, target):
    values = torch.randn(2, grid[0] * grid[1] * grid[2], 3, generator=torch.Generator().manual_seed(1))
    maps = values.view(2, *grid, 3)
    resized = area_resized(values, grid, target).view(2, *target, 3)

    def window(axis: int, place: int) -> slice:
        size, full = grid[axis], target[axis]
        return slice(place * size // full, -(-(place + 1) * size // full))

    for frame in range(target[0]):
        for row in range(target[1]):
            for column in range(target[2]):
                areas = maps[:, window(0, frame), window(1, row), window(2, column)]
                torch.testing.assert_close(resized[:, frame, row, column], areas.mean(dim=(1, 2, 3)))
