"""What every method promises, run on a tiny real model: any score, any recovery, any scales, any ratio."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from random_maps import random_maps
from stepvar.generation.plan import kept_tokens
from stepvar.generation.pruner import LateScalePruning, PruningMethod
from stepvar.generation.sampling import CodebookSampler, CodebookSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import put_choice
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.interpolation import nearest_kept
from stepvar.pruning.presets import METHODS, with_scales
from stepvar.pruning.recovery import ready_recoveries
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import VALUES, StepVAR
from tiny_models import SMALL, bits, draw, make_text, make_transformer

DEPTH = 4
LATE = {-2: 0.4, -1: 0.6}

CHOICES: dict[str, LateScalePruning] = {
    **METHODS,
    **{f"recovery {recovery}": StepVAR(recovery=recovery) for recovery in ready_recoveries()},
    **{f"score {score}": StepVAR(score=score) for score in SCORERS},
    "recovery calibrated": StepVAR(recovery=random_maps([(9, 7), (12, 10)], 64, (1, DEPTH))),
    "anchors under nearest": StepVAR(anchor_stride=4),
    "copied values": StepVAR(values="copied"),
    "copied values of anchors": StepVAR(values="copied", recovery="anchor"),
    "expected values": StepVAR(values="expected"),
    "stages": StepVAR(stages=3),
    "staged update": StepVAR(stages=2, recovery="update"),
    "dense end": StepVAR(dense_end=1),
    "dense end, filled from the cache": StepVAR(dense_end=2, recovery="cache"),
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
            together, alone = bits(batch)[scale][image], drawn[0]
            # Expected values are no bits, and may differ in the last digit.
            close = torch.allclose(together.float(), alone.float(), atol=1e-5)
            assert close if alone.is_floating_point() else torch.equal(together, alone)
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
    st.sampled_from(list(SCORERS)),
    st.sampled_from(ready_recoveries()),
    st.sampled_from([None, 4]),
    st.sampled_from(VALUES),
    st.integers(1, 2),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([0, 1]),
)
@settings(max_examples=40, deadline=None)
def test_any_score_goes_with_any_recovery_at_any_ratios(
    ratios, score, recovery, stride, values, stages, first_layer, dense_end
):
    method = StepVAR(
        ratios=ratios,
        score=score,
        recovery=recovery,
        anchor_stride=stride,
        values="own" if (recovery, values) == ("cache", "copied") else values,
        stages=stages,
        first_layer=first_layer,
        dense_end=dense_end,
    )
    drawing = draw(MODEL, pruning=method)
    plan = method.plan(SMALL, DEPTH)
    for entry in plan.scales:
        layers = [entry.tokens(layer) for layer in range(DEPTH)]
        assert drawing.layer_tokens[entry.scale.index] == layers
        narrowed = layers[: DEPTH - dense_end]
        assert narrowed == sorted(narrowed, reverse=True)
        assert narrowed[-1] == entry.kept
        assert layers[DEPTH - dense_end :] == [entry.scale.tokens] * dense_end
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
    fresh, copied = (draw(model, pruning=StepVAR(ratios=LATE, values=kind)) for kind in ("own", "copied"))
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
        ({"recovery": "cache", "values": "copied"}, r"Copied values need a token to copy from"),
        ({"values": "mean"}, r"Unknown kind of values 'mean'; known are own, copied, expected"),
        ({"dense_end": -1}, r"dense_end is -1; it is a number of layers"),
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

    with pytest.raises(ValueError, match=r"first_layer 1 and dense_end 3 no layer of 4 .* may be 0 to 2"):
        StepVAR(ratios=LATE, dense_end=3).plan(SMALL, DEPTH)


def test_expected_values_are_the_mean_of_what_could_be_drawn(model):
    own, mean = (draw(model, pruning=StepVAR(ratios=LATE, values=kind)) for kind in ("own", "expected"))
    logits = own.tensors["logits", 4][0]
    assert torch.equal(mean.tensors["logits", 4][0], logits)
    kept = torch.zeros(63, dtype=torch.bool)
    kept[own.reports[4].kept_index[0]] = True
    drawn, settled = bits(own)[4][0], bits(mean)[4][0]
    assert torch.equal(settled[kept], drawn[kept].float()), "kept tokens draw as ever"
    torch.testing.assert_close(settled[~kept], logits[~kept].softmax(dim=-1)[..., 1])
    added = mean.tensors["latent", 4] - mean.tensors["latent", 3]
    whole = own.tensors["latent", 4] - own.tensors["latent", 3]
    assert added.square().mean() < whole.square().mean(), "what is open adds less than a guess"


def test_expected_values_of_a_codebook_are_mixtures():
    codebook = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    schedule = ScaleSchedule.from_grids([(1, 1), (2, 2)])
    settings = CodebookSettings((1.0, 1.0), (0, 3), 0.0, (None, None))
    generators = [torch.Generator().manual_seed(0)]
    sampler = CodebookSampler(settings, schedule, codebook, generators, torch.device("cpu"))
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = sampler.expect(logits, schedule[1])
    shares = torch.stack([sampler.filter(logits, schedule[1]).softmax(-1)[0, place] for place in range(4)])
    torch.testing.assert_close(expected.codes[0], shares @ codebook)
    assert torch.equal(expected.index, logits.argmax(-1)) and ((shares == 0).sum(-1) == 2).all()
    drawn = sampler.sample(logits, schedule[1])
    put = put_choice(expected, torch.tensor([[0, 3]]), drawn)
    assert torch.equal(put.codes[0, [0, 3]], drawn.codes[0, [0, 3]])
    assert torch.equal(put.codes[0, [1, 2]], expected.codes[0, [1, 2]])


def test_a_dense_end_goes_on_from_what_was_recovered(model):
    drawing = draw(model, pruning=StepVAR(ratios=LATE, dense_end=1), guidance=1.0)
    kept = drawing.reports[5].kept_index[0]
    last_narrow, last = drawing.tensors["layer 2", 5][0], drawing.tensors["layer 3", 5][0]
    assert last_narrow.shape[0] == len(kept) and last.shape[0] == 120
    plain = draw(model, pruning=StepVAR(ratios=LATE), guidance=1.0)
    source = nearest_kept(kept[None], (1, 12, 10))[0]
    for drawing_, equal in ((plain, True), (drawing, False)):
        logits = drawing_.tensors["logits", 5][0]
        own = drawing_.reports[5].kept_index[0]
        places = source if drawing_ is drawing else nearest_kept(own[None], (1, 12, 10))[0]
        assert torch.allclose(logits, logits[own][places]) is equal, "all layers but the last copied"


def test_stages_take_equal_shares():
    entry = StepVAR(ratios={-1: 0.6}, stages=3).plan(SMALL, 7)[5]
    assert [entry.tokens(layer) for layer in range(7)] == [120, 96, 96, 72, 72, 48, 48]
