"""Infinity at work on one batch: what is computed once, and how codes become the next input."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as functional

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.quantizer import latent_bits_from_tokens, latent_from_bits
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, TEXT_CHANNELS, bits, draw, make_text, make_transformer, same_bits


@pytest.mark.parametrize("pruning", [None, StepVAR(ratios={-1: 0.5}, skip=(-2,))])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_text_and_modulations_are_computed_once_a_generation(pruning, guidance):
    model, calls = make_transformer(), Counter()
    once = {name: module for name, module in model.named_modules() if "key_value" in name}
    once |= {
        name: getattr(model, name)
        for name in ("text_norm", "text_pool", "text_projection", "shared_modulation", "head_modulation")
    }
    del once["text_projection"]
    once |= {f"text_projection.{index}": model.text_projection[index] for index in (0, 2)}
    for name, module in once.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    draw(model, text=make_text(3, 7), seeds=[0, 1], pruning=pruning, guidance=guidance)
    assert calls == dict.fromkeys(once, 1)
    assert sum("cross_attention" in name for name in once) == 3, "one a layer"


def test_blocks_run_once_a_scale(transformer):
    calls = Counter()
    handles = [
        block.feed_forward.register_forward_hook(lambda *_, index=index: calls.update([index]))
        for index, block in enumerate(transformer.blocks)
    ]
    draw(transformer, pruning=StepVAR(skip=(-1,)))
    for handle in handles:
        handle.remove()
    assert calls == {0: 5, 1: 5, 2: 5}


def test_texts_of_equal_length_need_no_mask(transformer):
    equal = InfinitySession(transformer, TextCondition(make_text(4, 4)), SMALL)
    ragged = InfinitySession(transformer, TextCondition(make_text(4, 6)), SMALL)
    assert equal.mask is None
    assert ragged.mask.flatten(1).tolist() == [[True] * 4 + [False] * 2, [True] * 6]


def test_padding_is_never_attended_to(transformer):
    texts = make_text(2, 12)
    together = draw(transformer, text=texts, seeds=[0, 1], guidance=1.0)
    alone = draw(transformer, text=texts[:1], guidance=1.0)
    for scale in range(6):
        torch.testing.assert_close(
            together.tensors["logits", scale][:1], alone.tensors["logits", scale], rtol=1e-4, atol=1e-5
        )


def test_half_precision_text_features_are_accepted(transformer):
    texts = make_text(4, 6)
    half = [text.half() for text in texts]
    exact = draw(transformer, text=[text.float() for text in half], seeds=[0, 1])
    assert same_bits(draw(transformer, text=half, seeds=[0, 1]), exact)


def test_codes_accumulate_over_the_scales(transformer):
    drawing = draw(transformer, text=make_text(4, 6), seeds=[0, 1])
    drawn = [bits(drawing)[scale.index].unflatten(1, (scale.height, scale.width)) for scale in SMALL]
    for scale in SMALL:
        expected = latent_from_bits(drawn[: scale.index + 1], (12, 10))
        torch.testing.assert_close(drawing.tensors["latent", scale.index], expected)
    following = functional.interpolate(drawing.tensors["latent", 3], size=(9, 7), mode="bilinear")
    codes = following.flatten(2).transpose(1, 2)
    embedded = transformer.token_embedding(codes) + transformer.level_embedding.weight[4]
    torch.testing.assert_close(drawing.tensors["input", 4], embedded.repeat(2, 1, 1))


@pytest.mark.parametrize("pruning", [None, StepVAR(ratios={-1: 0.5, -2: 0.3})])
def test_tokens_may_hold_two_by_two_latent_positions(pruning):
    model = make_transformer(bits=8)
    drawing = draw(model, text=make_text(4, 6), seeds=[0, 1], patchify=True, pruning=pruning)
    assert drawing.result.latent.shape == (2, 2, 24, 20)
    tokens = [bits(drawing)[scale.index].unflatten(1, (scale.height, scale.width)) for scale in SMALL]
    latent = latent_from_bits([latent_bits_from_tokens(scale) for scale in tokens], (24, 20))
    torch.testing.assert_close(drawing.result.latent, latent)
    before = functional.interpolate(drawing.tensors["latent", 4], size=(24, 20), mode="bilinear")
    codes = before.unflatten(2, (12, 2)).unflatten(4, (10, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    embedded = model.token_embedding(codes.flatten(1, 2)) + model.level_embedding.weight[5]
    torch.testing.assert_close(drawing.tensors["input", 5], embedded.repeat(2, 1, 1))


def test_the_first_scale_sees_the_pooled_text_only(transformer):
    texts = make_text(5, 5)
    drawing = draw(transformer, text=texts, seeds=[0, 1])
    first = drawing.tensors["input", 0]
    assert first.shape == (4, 1, 64)
    assert not torch.allclose(first[0], first[1])
    alone = draw(transformer, text=texts[1:], seeds=[1]).tensors["input", 0]
    torch.testing.assert_close(first[1], alone[0])


def test_a_schedule_of_one_scale_draws(transformer):
    drawing = draw(transformer, ScaleSchedule.from_grids([(1, 1)]))
    assert drawing.result.latent.shape == (1, 4, 1, 1)
    assert transformer.config.text_channels == TEXT_CHANNELS
