"""Keys and values as 8-bit integers: memory as promised, pictures nearly the same."""

from __future__ import annotations

import pytest
import torch

from stepvar import Int8Cache, ScaleKV, StepVAR
from stepvar.generation.cache import KVCache
from tiny_pipelines import MAKERS, made

PRUNED = StepVAR(ratios={-2: 0.4, -1: 0.6})
CPU = torch.device("cpu")


def draw(name, method, images=2):
    subjects = MAKERS[name][1][:images]
    output = made(name)(subjects, seed=3, pruning=method, output_type="latent")
    return output.images, output.report


@pytest.mark.parametrize("inner", [None, PRUNED])
@pytest.mark.parametrize("name", ["infinity", "var", "hart", "causal switti"])
def test_a_picture_with_it_takes_the_memory_that_the_summary_promised(name, inner):
    method = Int8Cache(inner)
    rounded, report = draw(name, method)
    told, plain = (made(name).summary(each, images=2) for each in (method, inner))
    assert told.cache_bytes == report.cache_bytes < 0.6 * plain.cache_bytes
    assert told.flops == plain.flops
    assert torch.equal(rounded, draw(name, method)[0])
    torch.testing.assert_close(rounded[:1], draw(name, method, images=1)[0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ["switti", "infinitystar"])
def test_models_without_such_a_cache_refuse_it(name):
    with pytest.raises(ValueError, match=r"as 8-bit integers, and .*Pipeline has no cache that can"):
        made(name).summary(Int8Cache())


@pytest.mark.parametrize("method", [Int8Cache(ScaleKV(share=0.15)), ScaleKV(share=0.15, pruning=Int8Cache())])
def test_a_cache_is_cut_or_rounded(method):
    with pytest.raises(ValueError, match="use one of the two"):
        made("infinity").summary(method)


def test_attention_is_that_of_the_plain_cache_but_for_rounding():
    generator = torch.Generator().manual_seed(0)
    caches = [KVCache([40], 2, 3, 8, torch.float32, CPU, int8) for int8 in (False, True)]
    for tokens in (1, 4, 35):
        parts = torch.randn(3, 2, 3, tokens, 8, generator=generator)
        plain, rounded = (cache[0].attend(*parts, None) for cache in caches)
        torch.testing.assert_close(rounded, plain, rtol=0, atol=0.02)
        assert tokens > 1 or torch.equal(rounded, plain), "a scale's own tokens are exact"
    with pytest.raises(RuntimeError, match="holds 40 tokens, but 41"):
        caches[1][0].attend(*parts[:, :, :, :1], None)


def test_zeros_stay_zeros():
    cache = KVCache([8], 1, 1, 4, torch.float32, CPU, int8=True)
    nothing = torch.zeros(1, 1, 2, 4)
    cache[0].attend(nothing, nothing, nothing, None)
    attended = cache[0].attend(nothing, nothing, nothing, None)
    assert torch.equal(attended, nothing)
