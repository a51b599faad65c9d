"""VAR in the loop: batches, guidance, and pruning on every scale schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import StepVAR
from tiny_var import SIDES, draw_var, indices, make_var

PRUNING = StepVAR(ratios={-2: 0.4, -1: 0.6})

SCHEDULES = {
    "256 px": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "512 px": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "two scales": (1, 4),
    "a start of four": (2, 3, 5),
}


@pytest.fixture(scope="module")
def model():
    return make_var()


def same(left, right) -> bool:
    first, second = indices(left), indices(right)
    return first.keys() == second.keys() and all(torch.equal(first[scale], second[scale]) for scale in first)


@pytest.mark.parametrize("pruning", [None, PRUNING, StepVAR(ratios={-2: 0.5}, skip=(-1,))])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_batch_draws_what_single_runs_draw(model, pruning, smooth):
    together = draw_var(model, [3, 0, 3], [5, 6, 7], pruning=pruning, smooth=smooth)
    for row, (label, seed) in enumerate(zip((3, 0, 3), (5, 6, 7), strict=True)):
        alone = draw_var(model, [label], [seed], pruning=pruning, smooth=smooth)
        for scale, index in indices(alone).items():
            assert torch.equal(indices(together)[scale][row], index[0])
        # Mixing codes at a low temperature enlarges rounding.
        torch.testing.assert_close(together.result.latent[row], alone.result.latent[0], rtol=0, atol=2e-3)


@given(st.sampled_from(list(SCORERS)), st.integers(0, 20))
@settings(max_examples=12, deadline=None)
def test_pruning_nothing_is_the_dense_run(score, seed):
    model = make_var()
    dense = draw_var(model, [1], [seed])
    pruned = draw_var(model, [1], [seed], pruning=StepVAR(ratios={-1: 0.0, -2: 0.0}, score=score))
    assert pruned.fingerprint() == dense.fingerprint()


@given(st.sampled_from(list(SCHEDULES)), st.floats(0.2, 0.95), st.booleans(), st.sampled_from(list(SCORERS)))
@settings(max_examples=20, deadline=None)
def test_every_schedule_runs_the_planned_tokens(name, ratio, skip, score):
    model = make_var(sides=SCHEDULES[name], width=16, heads=1, depth=2)
    pruning = StepVAR(ratios={-1: ratio}, score=score)
    if skip and len(SCHEDULES[name]) > 2:
        pruning = StepVAR(ratios={-2: ratio}, skip=(-1,), score=score)
    plan = pruning.plan(model.schedule, 2)
    drawing = draw_var(model, [2], [1], pruning=pruning)
    for entry, report, layers in zip(plan.scales, drawing.reports, drawing.layer_tokens, strict=True):
        assert layers == [entry.tokens(layer) for layer in range(2)]
        kept = report.kept_index
        if entry.prunes:
            assert kept.shape == (1, entry.kept)
            assert len(set(kept[0].tolist())) == entry.kept
        else:
            assert kept is None
    assert drawing.cache_lengths == [(plan.cached_tokens(layer),) * 2 for layer in range(2)]
    assert drawing.result.latent.isfinite().all()


def test_scales_before_the_first_pruned_one_are_untouched(model):
    dense, pruned = draw_var(model), draw_var(model, pruning=PRUNING)
    for scale in range(len(SIDES) - 2):
        assert torch.equal(indices(dense)[scale], indices(pruned)[scale])
    assert not same(dense, pruned)


def test_a_skipped_scale_leaves_the_latent_and_later_noise_alone(model):
    dense = draw_var(model, strength=0.0)
    skipped = draw_var(model, strength=0.0, pruning=StepVAR(skip=(-1,)))
    assert torch.equal(skipped.result.latent, dense.tensors["latent", len(SIDES) - 2])
    middle = draw_var(model, strength=0.0, pruning=StepVAR(skip=(-2,)))
    assert indices(middle).keys() == set(range(len(SIDES))) - {len(SIDES) - 2}


def test_guidance_is_off_at_the_first_scale_and_then_steers(model):
    plain, guided = draw_var(model, strength=0.0), draw_var(model, strength=4.0)
    assert torch.equal(indices(plain)[0], indices(guided)[0])
    assert not same(plain, guided)
    assert [report.rows for report in plain.reports] == [1] * len(SIDES)
    assert [report.rows for report in guided.reports] == [2] * len(SIDES)


def test_the_class_and_the_seed_matter(model):
    first = draw_var(model, [0], [0])
    assert not same(first, draw_var(model, [1], [0]))
    assert not same(first, draw_var(model, [0], [1]))
    assert same(first, draw_var(model, [0], [0]))


@pytest.mark.parametrize("shares_modulation", [True, False])
@pytest.mark.parametrize("cosine_attention", [True, False])
def test_every_variant_draws(shares_modulation, cosine_attention):
    model = make_var(shares_modulation=shares_modulation, cosine_attention=cosine_attention)
    assert draw_var(model, pruning=PRUNING).result.latent.isfinite().all()
