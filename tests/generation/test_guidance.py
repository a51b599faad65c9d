"""Classifier-free guidance: where it mixes, by how much, and how long the second copy lives."""

from __future__ import annotations

import pytest
import torch

from stepvar.generation.guidance import Guidance, per_scale
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, bits, draw, make_text, same_bits

WEIGHTS = [2.0, 3.0, 1.0, 1.5, 1.0, 1.0]
"""Guided at scales 0, 1 and 3; the last guided scale is 3."""


@pytest.mark.parametrize("pruning", [None, StepVAR(ratios={-3: 0.3, -2: 0.4, -1: 0.6}), StepVAR(skip=(-3,))])
@pytest.mark.parametrize("layers", [(), (0, 1)])
def test_unconditional_rows_are_released_after_the_last_guided_scale(transformer, pruning, layers):
    settings = {"guidance": WEIGHTS, "pruning": pruning, "layers": layers, "text": make_text(3, 8)}
    released = draw(transformer, seeds=[0, 1], **settings)
    carried = draw(transformer, seeds=[0, 1], release=False, **settings)
    skipped = {report.plan.scale.index for report in released.reports if report.plan.skipped}
    expected = [0 if index in skipped else rows for index, rows in enumerate([4, 4, 4, 4, 2, 2])]
    assert [report.rows for report in released.reports] == expected
    assert [report.rows for report in carried.reports] == [rows and 4 for rows in expected]
    for scale, rows in enumerate(expected):
        if rows:
            assert released.tensors["layer 2", scale].shape[0] == rows
    assert same_bits(released, carried)
    torch.testing.assert_close(released.result.latent, carried.result.latent)


def test_without_guidance_no_second_copy_is_made(transformer):
    drawing = draw(transformer, guidance=1.0)
    assert [report.rows for report in drawing.reports] == [1] * 6
    assert drawing.session.cache.layers[0].keys.shape[0] == 1
    guided = draw(transformer, guidance=3.0)
    assert guided.result.cache_bytes == 2 * drawing.result.cache_bytes


def test_guidance_that_is_mixed_in_nowhere_costs_nothing(transformer):
    drawing = draw(transformer, guidance=3.0, layers=(), at_logits=False)
    assert [report.rows for report in drawing.reports] == [1] * 6
    assert drawing.fingerprint() == draw(transformer, guidance=1.0).fingerprint()


def test_weight_one_everywhere_equals_a_run_that_carries_the_second_copy(transformer):
    lone = draw(transformer, guidance=1.0)
    carried = draw(transformer, guidance=[1.0] * 5 + [1.0 + 1e-12], release=False)
    assert same_bits(lone, carried)


def test_logits_are_mixed_by_the_weight_of_their_scale(transformer):
    texts = make_text(5)
    forced = bits(draw(transformer, text=texts))
    conditional = draw(transformer, text=texts, guidance=1.0, forced=forced)
    other = [transformer.unconditional_text[:5]]
    unconditional = draw(transformer, text=other, guidance=1.0, forced=forced)
    guided = draw(transformer, text=texts, guidance=WEIGHTS, forced=forced)
    for scale, weight in enumerate(WEIGHTS):
        left, right = (run.tensors["logits", scale] for run in (conditional, unconditional))
        torch.testing.assert_close(
            guided.tensors["logits", scale], weight * left + (1 - weight) * right, rtol=1e-4, atol=1e-5
        )


def test_unconditional_copies_go_on_alone_where_guidance_is_dropped(transformer):
    """From there on a run is one of the unconditional text, over the codes that guidance has drawn."""
    texts = make_text(5, 5)
    dropped = StepVAR(unguided=-2, remaining="unconditional")
    drawn = draw(transformer, text=texts, seeds=[0, 1], pruning=dropped)
    assert [report.rows for report in drawn.reports] == [4, 4, 4, 4, 2, 2]
    others = [transformer.unconditional_text[:5]] * 2
    alone = draw(transformer, text=others, seeds=[0, 1], guidance=1.0, forced=bits(drawn))
    guided = draw(transformer, text=texts, seeds=[0, 1], forced=bits(drawn))
    for scale in range(6):
        same = alone if scale >= 4 else guided
        torch.testing.assert_close(drawn.tensors["logits", scale], same.tensors["logits", scale])
    kept = draw(transformer, text=texts, seeds=[0, 1], pruning=StepVAR(unguided=-2))
    assert not same_bits(drawn, kept)


def test_weights_of_one_before_guidance_is_dropped_keep_what_goes_on_later(transformer):
    """A scale of weight 1 draws from the conditional copy, and the unconditional one lives on."""
    weights = [3.0, 3.0, 1.0, 1.0, 3.0, 3.0]
    for start, rows in ((-2, [2, 2, 2, 2, 1, 1]), (-3, [2, 2, 2, 1, 1, 1])):
        method = StepVAR(unguided=start, remaining="unconditional")
        drawn = draw(transformer, guidance=weights, pruning=method)
        assert [report.rows for report in drawn.reports] == rows
        plain = draw(transformer, guidance=1.0, forced=bits(drawn))
        torch.testing.assert_close(drawn.tensors["logits", 2], plain.tensors["logits", 2])


def test_negative_prompts_take_the_place_of_the_learned_text(transformer):
    texts, negatives = make_text(5, 9), make_text(7, 2, seed=1)
    learned = [transformer.unconditional_text[: len(text)] for text in texts]
    default = draw(transformer, text=texts, seeds=[0, 1])
    assert same_bits(default, draw(transformer, text=texts, negative=learned, seeds=[0, 1]))
    steered = draw(transformer, text=texts, negative=negatives, seeds=[0, 1])
    assert not same_bits(default, steered)
    # Steering away from the prompt itself leaves the prompt: both copies are equal.
    forced = bits(default)
    itself = draw(transformer, text=texts, negative=texts, seeds=[0, 1], forced=forced)
    plain = draw(transformer, text=texts, guidance=1.0, seeds=[0, 1], forced=forced)
    for scale in range(6):
        torch.testing.assert_close(
            itself.tensors["logits", scale], plain.tensors["logits", scale], rtol=1e-4, atol=1e-4
        )


def test_negative_prompts_of_a_batch_belong_to_their_image(transformer):
    texts, negatives = make_text(5, 9), make_text(12, 2, seed=1)
    batch = draw(transformer, text=texts, negative=negatives, seeds=[0, 1])
    for image in range(2):
        single = draw(transformer, text=[texts[image]], negative=[negatives[image]], seeds=[image])
        assert all(torch.equal(bits(batch)[scale][image], drawn[0]) for scale, drawn in bits(single).items())


@pytest.mark.parametrize("pruning", [None, StepVAR(ratios={-3: 0.5})])
def test_guidance_after_the_last_layer_feeds_the_mixture_to_the_head(transformer, pruning):
    inside = {"layers": [2], "at_logits": False, "release": False}
    drawing = draw(transformer, guidance=WEIGHTS, pruning=pruning, **inside)
    for scale, weight in enumerate(WEIGHTS):
        if drawing.reports[scale].kept_index is not None:
            continue
        conditional, unconditional = drawing.tensors["layer 2", scale].chunk(2)
        expected = drawing.session.logits(weight * conditional + (1 - weight) * unconditional)
        torch.testing.assert_close(drawing.tensors["logits", scale], expected)


def test_guidance_inside_reaches_all_later_layers(transformer):
    forced = bits(draw(transformer))
    plain = draw(transformer, guidance=1.0, forced=forced)
    guided = draw(transformer, guidance=WEIGHTS, layers=[0], at_logits=False, forced=forced)
    torch.testing.assert_close(plain.tensors["layer 0", 0], guided.tensors["layer 0", 0][:1])
    for layer in (1, 2):
        assert not torch.allclose(plain.tensors[f"layer {layer}", 0], guided.tensors[f"layer {layer}", 0][:1])


def test_guidance_inside_mixes_hidden_states_by_the_weight():
    guidance = Guidance((3.0, 1.0), frozenset({2}), at_logits=False)
    hidden = torch.randn(4, 5, 6)
    mixed = guidance.after_layer(0, 2, hidden)
    expected = 3.0 * hidden[:2] - 2.0 * hidden[2:]
    torch.testing.assert_close(mixed, torch.cat([expected, expected]))
    assert guidance.after_layer(0, 1, hidden) is hidden, "another layer"
    assert guidance.after_layer(1, 2, hidden) is hidden, "a scale of weight 1"
    assert not guidance.mixes_logits(0)


def test_guidance_inside_and_at_the_logits_may_be_combined(transformer):
    both = draw(transformer, guidance=3.0, layers=[0])
    inside = draw(transformer, guidance=3.0, layers=[0], at_logits=False)
    outside = draw(transformer, guidance=3.0)
    assert len({run.fingerprint() for run in (both, inside, outside)}) == 3


def test_lists_act_scale_by_scale(transformer):
    plain = draw(transformer)
    warmer = draw(transformer, temperature=[1.0, 1.0, 1.0, 1.0, 1.0, 3.0])
    stronger = draw(transformer, guidance=[3.0, 3.0, 3.0, 3.0, 3.0, 9.0])
    for changed in (warmer, stronger):
        for scale in range(5):
            assert torch.equal(bits(plain)[scale], bits(changed)[scale])
        assert not torch.equal(plain.tensors["logits", 5], changed.tensors["logits", 5])
    torch.testing.assert_close(plain.tensors["logits", 5] / 3, warmer.tensors["logits", 5])


def test_a_number_equals_its_list(transformer):
    listed = draw(transformer, guidance=[3.0] * 6, temperature=[1.0] * 9)
    assert listed.fingerprint() == draw(transformer).fingerprint()


def test_lists_that_are_too_short_are_refused():
    assert per_scale(2, 3, "x") == (2.0, 2.0, 2.0)
    assert per_scale([1, 2, 3, 4], 3, "x") == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match=r"temperature has 2 entries, but the schedule has 6 scales"):
        per_scale([1.0, 2.0], len(SMALL), "temperature")


def test_copies_of_an_image_that_is_no_longer_guided_are_one():
    guidance, hidden = Guidance((3.0, 3.0), until=(2, 1, 2)), torch.arange(6.0).view(6, 1, 1)
    assert guidance.paired(0, hidden) is hidden
    assert guidance.paired(1, hidden).flatten().tolist() == [0, 1, 2, 3, 1, 5]
    assert guidance.paired(1, hidden[:3]).flatten().tolist() == [0, 1, 2], "one copy has nothing to replace"
    assert Guidance((3.0, 3.0)).paired(1, hidden) is hidden
