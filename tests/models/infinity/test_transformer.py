"""The transformer: number formats, limits, and the sizes it says it has."""

from __future__ import annotations

import math

import pytest
import torch

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.published import feed_forward_width
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, bits, draw, make_text, make_transformer

HALVES = {torch.bfloat16: 0.03, torch.float16: 0.005}
"""Largest error of a logit, as a share of the largest logit."""


@pytest.fixture(scope="module", params=[None, StepVAR(ratios={-2: 0.4, -1: 0.5}, score="texture")])
def reference(request):
    model = make_transformer(depth=4)
    texts = make_text(3, 8)
    free = draw(model, text=texts, seeds=[0, 1], pruning=request.param)
    return texts, request.param, free, bits(free)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("keep", [True, False])
def test_half_precision_stays_near_float32(reference, dtype, keep):
    texts, pruning, exact, forced = reference
    model = make_transformer(depth=4)
    kept = set(model._keep_in_fp32_modules) if keep else set()
    for name, module in model.named_children():
        if name not in kept:
            module.to(dtype)
    for parameter in (model.start_embedding, model.unconditional_text):
        parameter.data = parameter.data.to(dtype)
    half = draw(model, text=texts, seeds=[0, 1], pruning=pruning, forced=forced)
    assert half.session.cache.layers[0].keys.dtype == dtype
    assert half.result.cache_bytes * 2 == exact.result.cache_bytes
    for scale in forced:
        expected, found = exact.tensors["logits", scale], half.tensors["logits", scale]
        assert found.dtype == torch.float32
        error = (found - expected).abs()
        if exact.reports[scale].kept_index is None:
            assert float(error.max()) < HALVES[dtype] * float(expected.abs().max())
        else:
            # A few tokens at the cut may be chosen differently; the others must agree.
            typical = float(error.flatten().quantile(0.9))
            assert typical < HALVES[dtype] * float(expected.abs().max())


def test_half_precision_codes_are_summed_in_float32(reference):
    texts, _, _, _ = reference
    half = draw(make_transformer().to(torch.bfloat16), text=texts, seeds=[0, 1])
    assert half.result.latent.dtype == torch.float32
    assert half.tensors["input", 3].dtype == torch.float32
    assert half.tensors["layer 2", 5].dtype == torch.float32, "the residual stream stays in float32"


@pytest.mark.parametrize(
    ("width", "hidden"), [(192, 768), (768, 3072), (2048, 8192), (2080, 8192), (3360, 13312), (3584, 14336)]
)
def test_feed_forward_width_is_rounded_half_to_even(width, hidden):
    assert feed_forward_width(width) == hidden


def test_attention_scales_are_clamped_at_one_hundred():
    def drawing(log_scale: float):
        model = make_transformer()
        model.blocks[1].self_attention.log_scale.fill_(log_scale)
        return draw(model).tensors["layer 2", 4]

    assert torch.equal(drawing(math.log(100)), drawing(7.0))
    assert not torch.equal(drawing(math.log(100)), drawing(4.0))


def test_a_schedule_longer_than_the_levels_is_refused():
    model = make_transformer(levels=5)
    with pytest.raises(ValueError, match=r"The schedule has 6 scales, but this model has 5 levels"):
        draw(model, SMALL)
    draw(model, ScaleSchedule(SMALL.scales[:5]))


def test_a_model_knows_its_sizes():
    assert make_transformer().size_table == SizeTable.published()
    own = make_transformer(grids=[[1, 1], [2, 3], [4, 6]], pixels_per_token=8).size_table
    assert own == SizeTable.single([(1, 1), (2, 3), (4, 6)], 8)


def test_an_unknown_published_size_is_refused():
    with pytest.raises(ValueError, match=r"(?s)3B.*2B"):
        InfinityTransformer.published("3B")


def test_every_scale_sees_the_prompt_and_the_coarser_scales(transformer):
    text, other = make_text(5), make_text(5, seed=1)
    forced = bits(draw(transformer, text=text))
    plain = draw(transformer, text=text, guidance=1.0, forced=forced)
    prompted = draw(transformer, text=other, guidance=1.0, forced=forced)
    changed = dict(forced)
    changed[2] = ~forced[2]
    after = draw(transformer, text=text, guidance=1.0, forced=changed)
    for scale in range(6):
        assert not torch.allclose(plain.tensors["logits", scale], prompted.tensors["logits", scale])
        same = torch.equal(plain.tensors["logits", scale], after.tensors["logits", scale])
        assert same == (scale <= 2)


def test_rows_and_columns_are_told_apart(transformer):
    forced = {scale.index: torch.zeros(1, scale.tokens, 4, dtype=torch.bool) for scale in SMALL}
    logits = draw(transformer, guidance=1.0, forced=forced).tensors["logits", 4].unflatten(1, (9, 7))
    assert not torch.allclose(logits[:, 1, 3], logits[:, 3, 1])
    assert not torch.allclose(logits[:, 1, 3], logits[:, 1, 4])
    assert not torch.allclose(logits[:, 1, 3], logits[:, 2, 3])
