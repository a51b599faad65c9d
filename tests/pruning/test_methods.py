"""What every method promises, run on a tiny real model: any score, any recovery, any scales, any ratio."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.presets import METHODS, with_scales
from stepvar.pruning.base import LateScales, PruningMethod
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.plan import kept_tokens
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import RECOVERIES, StepVAR
from tiny_models import SMALL, bits, draw, make_text, make_transformer

DEPTH = 4
LATE = {-2: 0.4, -1: 0.6}

CHOICES: dict[str, LateScales] = {
    **METHODS,
    **{f"recovery {recovery}": StepVAR(recovery=recovery) for recovery in RECOVERIES},
    **{f"score {score}": StepVAR(score=score) for score in SCORERS},
    "anchors under nearest": StepVAR(anchor_stride=4),
    "copied values": StepVAR(copy_values=True),
    "copied values of anchors": StepVAR(copy_values=True, recovery="anchor"),
    "stages": StepVAR(stages=3),
    "staged update": StepVAR(stages=2, recovery="update"),
    "fastvar in all layers": FastVAR(first_layer=0, dense_end=0),
}


@pytest.fixture(scope="module")
def model():
    return make_transformer(depth=DEPTH)


@pytest.fixture(scope="module")
def dense(model):
    return draw(model)


@pytest.mark.parametrize("name", CHOICES)
def test_ratio_zero_is_the_dense_run(model, dense, name):
    method = replace(CHOICES[name], ratios=dict.fromkeys(LATE, 0.0))
    assert draw(model, pruning=method).fingerprint() == dense.fingerprint()


@pytest.mark.parametrize("name", CHOICES)
def test_a_batch_equals_single_runs_and_runs_are_repeatable(model, name):
    method = replace(CHOICES[name], ratios=LATE)
    texts, seeds = make_text(3, 9, 6), [7, 8, 7]
    batch = draw(model, text=texts, seeds=seeds, pruning=method)
    state = torch.get_rng_state()
    assert batch.fingerprint() == draw(model, text=texts, seeds=seeds, pruning=method).fingerprint()
    assert torch.equal(torch.get_rng_state(), state)
    for image, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        single = draw(model, text=[text], seeds=[seed], pruning=method)
        for scale, drawn in bits(single).items():
            assert torch.equal(bits(batch)[scale][image], drawn[0])
        for together, alone in zip(batch.reports, single.reports, strict=True):
            if alone.kept_index is not None:
                assert torch.equal(together.kept_index[image], alone.kept_index[0])


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_planned_is_what_runs(model, dense, name):
    method = replace(CHOICES[name], ratios=LATE, skip=(-3,))
    assert isinstance(method, PruningMethod)
    plan, drawing = method.plan(SMALL, DEPTH), draw(model, pruning=method)
    assert drawing.cache_lengths == [(plan.cached_tokens(layer),) * 2 for layer in range(DEPTH)]
    for entry, report in zip(plan.scales, drawing.reports, strict=True):
        if entry.prunes:
            assert report.kept_index.shape == (1, entry.kept)
            assert entry.kept == kept_tokens(entry.scale.tokens, LATE[entry.scale.index - 6])
        else:
            assert report.kept_index is None
    assert bits(drawing).keys() == {0, 1, 2, 4, 5}
    for scale in range(3):
        assert torch.equal(bits(drawing)[scale], bits(dense)[scale])
    assert not torch.equal(drawing.tensors["logits", 5], dense.tensors["logits", 5])


SCALES = st.dictionaries(st.integers(-3, -1), st.floats(0.05, 0.85), min_size=1)


@given(
    SCALES,
    st.sampled_from(SCORERS),
    st.sampled_from(RECOVERIES),
    st.sampled_from([None, 4]),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([None, 0, 1]),
)
@settings(max_examples=40, deadline=None)
def test_any_score_goes_with_any_recovery_at_any_ratios(
    ratios, score, recovery, stride, copied, stages, first_layer
):
    method = StepVAR(
        ratios=ratios,
        score=score,
        recovery=recovery,
        anchor_stride=stride,
        copy_values=copied and recovery != "cache",
        stages=stages,
        first_layer=first_layer,
    )
    drawing = draw(MODEL, pruning=method)
    plan = method.plan(SMALL, DEPTH)
    for entry in plan.scales:
        layers = [entry.tokens(layer) for layer in range(DEPTH)]
        assert drawing.layer_tokens[entry.scale.index] == layers
        assert layers == sorted(layers, reverse=True)
        assert layers[-1] == entry.kept
    assert torch.isfinite(drawing.result.latent).all()


MODEL = make_transformer(depth=DEPTH)


def test_methods_are_compared_on_one_schedule():
    plans = {name: with_scales(name, LATE, (-3,)).plan(SMALL, DEPTH) for name in METHODS}
    assert len({tuple(entry.kept for entry in plan.scales) for plan in plans.values()}) == 1
    with pytest.raises(ValueError, match=r"Unknown pruning method 'sparsevar'; known are stepvar, fastvar"):
        with_scales("sparsevar", LATE)


def test_the_stand_in_keeps_high_frequencies_and_anchors(model):
    standin = draw(model, pruning=with_scales("sparsevar-standin", LATE))
    texture = draw(model, pruning=StepVAR(ratios=LATE, score="texture"))
    kept = set(standin.reports[4].kept_index[0].tolist())
    anchors = {row * 7 + column for row in (2, 6) for column in (2, 6)}
    assert anchors <= kept
    assert kept - anchors < set(texture.reports[4].kept_index[0].tolist())


def test_values_are_copied_with_the_features(model):
    fresh, copied = (draw(model, pruning=StepVAR(ratios=LATE, copy_values=copy)) for copy in (False, True))
    assert torch.equal(copied.tensors["logits", 4], fresh.tensors["logits", 4])
    kept = copied.reports[4].kept_index[0]
    for drawing, equal in ((copied, True), (fresh, False)):
        choice, logits = bits(drawing)[4][0], drawing.tensors["logits", 4][0]
        source = torch.stack([(logits[kept] - row).abs().flatten(1).sum(1).argmin() for row in logits])
        assert torch.equal(choice, choice[kept][source]) is equal
        assert torch.equal(choice[kept], bits(fresh)[4][0][kept]), "kept tokens draw as ever"


def test_update_recovery_adds_what_the_nearest_kept_token_gained(model):
    drawing = draw(model, pruning=StepVAR(ratios=LATE, recovery="update"), guidance=1.0)
    entering, leaving = drawing.tensors["layer 0", 4][0], drawing.tensors["layer 3", 4][0]
    kept = drawing.reports[4].kept_index[0]
    places = torch.stack([torch.arange(63) // 7, torch.arange(63) % 7], dim=1)
    nearest = (places[:, None] - places[kept]).square().sum(-1).argmin(dim=1)
    expected = entering + (leaving - entering[kept])[nearest]
    logits = drawing.session.logits(expected[None])
    torch.testing.assert_close(drawing.tensors["logits", 4], logits, rtol=1e-4, atol=1e-4)


def test_cache_recovery_takes_features_of_the_last_full_scale(model):
    drawing = draw(model, pruning=StepVAR(ratios=LATE, recovery="cache"), guidance=1.0)
    source = drawing.tensors["layer 3", 3][0].view(6, 5, -1)
    kept = drawing.reports[5].kept_index[0]
    maps = torch.nn.functional.adaptive_avg_pool2d(source.permute(2, 0, 1), (12, 10)).flatten(1).T.clone()
    maps[kept] = drawing.tensors["layer 3", 5][0]
    logits = drawing.session.logits(maps[None])
    torch.testing.assert_close(drawing.tensors["logits", 5], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"recovery": "magic"}, r"Unknown recovery 'magic'; known are nearest, anchor, cache"),
        ({"anchor_stride": 1}, r"anchor_stride is 1; it must be 2 or more"),
        ({"stages": 0}, r"stages is 0"),
        ({"recovery": "cache", "copy_values": True}, r"copy_values needs a token to copy from"),
    ],
)
def test_fields_that_cannot_be_are_refused_in_words(fields, words):
    with pytest.raises(ValueError, match=words):
        StepVAR(ratios=LATE, **fields)


def test_plans_that_cannot_be_are_refused_in_words():
    with pytest.raises(ValueError, match=r"Scale 12x10 keeps 12 of 120 tokens, but has 30 anchors 2 tokens"):
        StepVAR(ratios={-1: 0.9}, anchor_stride=2).plan(SMALL, DEPTH)
    with pytest.raises(ValueError, match=r"4 stages need as many pruned layers; this plan prunes 3"):
        StepVAR(ratios=LATE, stages=4).plan(SMALL, DEPTH)


def test_stages_take_equal_shares():
    entry = StepVAR(ratios={-1: 0.6}, stages=3).plan(SMALL, 7)[5]
    assert [entry.tokens(layer) for layer in range(7)] == [120, 96, 96, 72, 72, 48, 48]
