"""Switti in the loop: no cache, guidance off at late scales, batches and pruning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.generation.cache import NoCache
from stepvar.models.switti.session import TextFeatures
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import StepVAR
from tiny_switti import draw_switti, make_features, make_switti
from tiny_var import SIDES, indices

PRUNING = StepVAR(ratios={-2: 0.4, -1: 0.6})
LATE_OFF = (1.0, 2.0, 3.0, 3.0, 1.0, 1.0)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "causal"])
def model(request):
    return make_switti(causal=request.param)


def same(left, right) -> bool:
    first, second = indices(left), indices(right)
    return first.keys() == second.keys() and all(torch.equal(first[scale], second[scale]) for scale in first)


@pytest.mark.parametrize("pruning", [None, PRUNING])
def test_a_batch_draws_what_single_runs_draw(model, pruning):
    features = make_features(5, 3, 7)
    together = draw_switti(model, seeds=[5, 6, 7], positive=features, pruning=pruning)
    for row, seed in enumerate((5, 6, 7)):
        own = TextFeatures(features.tokens[row : row + 1], features.pooled[row : row + 1])
        alone = draw_switti(model, seeds=[seed], positive=own, pruning=pruning)
        for scale, index in indices(alone).items():
            assert torch.equal(indices(together)[scale][row], index[0])


def test_nothing_is_cached_unless_scales_see_earlier_ones(model):
    drawing = draw_switti(model)
    if model.config.causal:
        assert drawing.cache_lengths == [(model.schedule.tokens,) * 2] * 3
    else:
        assert isinstance(drawing.session.cache, NoCache)
        assert drawing.result.cache_bytes == 0


@given(st.sampled_from(list(SCORERS)), st.booleans())
@settings(max_examples=8, deadline=None)
def test_pruning_nothing_is_the_dense_run(score, causal):
    model = make_switti(causal=causal)
    nothing = StepVAR(ratios={-1: 0.0, -2: 0.0}, score=score)
    assert draw_switti(model).fingerprint() == draw_switti(model, pruning=nothing).fingerprint()


@pytest.mark.parametrize("sides", [(1, 2, 3, 4, 6, 9, 13), (1, 2, 3, 4, 5, 7, 9, 12), (2, 3, 5)])
def test_every_schedule_runs_the_planned_tokens(sides):
    model = make_switti(sides=sides, depth=2)
    plan = PRUNING.plan(model.schedule, 2)
    weights = [1.0 + index for index in range(len(sides))]
    drawing = draw_switti(model, weights=weights, pruning=PRUNING)
    for entry, layers in zip(plan.scales, drawing.layer_tokens, strict=True):
        assert layers == [entry.tokens(layer) for layer in range(2)]
    assert drawing.result.latent.isfinite().all()


def test_unconditional_copies_run_only_where_they_are_mixed(model):
    drawing = draw_switti(model, weights=LATE_OFF)
    first = 2 if model.config.causal else 1
    assert [report.rows for report in drawing.reports] == [first, 2, 2, 2, 1, 1]
    assert same(drawing, draw_switti(model, weights=LATE_OFF, remembers=True)), "they change nothing"


def test_dropped_tokens_leave_no_trace_in_other_scales():
    """Without a cache, pruning a scale changes later ones through the latent alone."""
    model = make_switti()
    pruned = draw_switti(model, weights=(1.0,) * 6, pruning=StepVAR(ratios={-2: 0.5}))
    assert pruned.tensors["logits", 5].shape == (1, SIDES[-1] ** 2, 40)
    skipped = draw_switti(model, weights=(1.0,) * 6, pruning=StepVAR(skip=(-2,)))
    dense = draw_switti(model, weights=(1.0,) * 6)
    assert torch.equal(skipped.tensors["latent", 3], dense.tensors["latent", 3])


@pytest.mark.parametrize(
    "config", [{"rotary": False}, {"gated_feed_forward": False}, {"crop_condition": False}]
)
def test_every_variant_draws(config):
    model = make_switti(**config)
    drawing = draw_switti(model, weights=LATE_OFF, pruning=PRUNING)
    assert drawing.result.latent.isfinite().all()
    assert not same(drawing, draw_switti(make_switti(), weights=LATE_OFF, pruning=PRUNING))
