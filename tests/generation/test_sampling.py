"""Sampling of bits: filters, frequencies and whose noise is whose."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.generation.sampling import BitSampler, SamplingSettings, bit_probabilities
from tiny_models import SMALL


def pair(probability: float) -> torch.Tensor:
    """Logits whose softmax gives bit 1 this probability."""
    return torch.tensor([0.0, math.log(probability) - math.log1p(-probability)])


def official_probability(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Filtering as the reference describes it: keep the k largest, then drop the tail of the sorted rest."""
    logits = logits.clone()
    if top_k > 0:
        smallest = logits.topk(min(top_k, 2), dim=-1).values.amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if top_p > 0:
        ordered, places = logits.sort(dim=-1)
        drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(drop.scatter(-1, places, drop), -math.inf)
    return logits.softmax(dim=-1)[..., 1]


@pytest.mark.parametrize(
    ("top_k", "top_p", "probability", "expected"),
    [
        (0, 0.0, 0.3, 0.3),
        (2, 0.0, 0.3, 0.3),
        (900, 0.0, 0.3, 0.3),
        (1, 0.0, 0.3, 0.0),
        (1, 0.0, 0.7, 1.0),
        (1, 0.0, 0.5, 0.5),
        (0, 0.97, 0.029, 0.0),
        (0, 0.97, 0.031, 0.031),
        (0, 0.97, 0.971, 1.0),
        (0, 0.97, 0.969, 0.969),
        (0, 1.0, 0.001, 0.001),
        (0, 0.4, 0.3, 0.0),
        (900, 0.97, 0.5, 0.5),
        (1, 0.97, 0.5, 0.5),
    ],
)
def test_what_top_k_and_top_p_leave(top_k, top_p, probability, expected):
    result = float(bit_probabilities(pair(probability), top_k, top_p))
    assert result == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=40),
    st.sampled_from([0, 1, 2, 900]),
    st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.97]),
)
@settings(max_examples=60, deadline=None)
def test_filters_equal_the_reference(values, top_k, top_p):
    logits = torch.tensor(values[: len(values) // 2 * 2], dtype=torch.float64).view(-1, 2)
    gap = (logits[:, 0] - logits[:, 1]).abs()
    rarer = torch.sigmoid(-gap)
    # Ties and borders are decided by rounding; they have their own test above.
    clear = (gap > 1e-3) & ((rarer - (1 - top_p)).abs() > 1e-4)
    expected = official_probability(logits, top_k, top_p)[clear]
    torch.testing.assert_close(
        bit_probabilities(logits, top_k, top_p)[clear], expected.float(), rtol=1e-4, atol=1e-6
    )


def test_bits_come_as_often_as_their_probability():
    generator = torch.Generator().manual_seed(0)
    sampler = BitSampler(SamplingSettings((1.0,) * 6), SMALL, 64, [generator], torch.device("cpu"))
    for probability in (0.1, 0.5, 0.9):
        logits = pair(probability).expand(1, SMALL.final.tokens, 64, 2)
        drawn = sampler.sample(logits, SMALL.final)
        assert drawn.dtype == torch.bool
        assert float(drawn.float().mean()) == pytest.approx(probability, abs=0.02)


def test_noise_of_an_image_comes_from_its_generator_alone():
    def sampler(*seeds: int) -> BitSampler:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return BitSampler(SamplingSettings((1.0,) * 6), SMALL, 4, generators, torch.device("cpu"))

    three, one = sampler(1, 2, 3), sampler(2)
    for scale in SMALL:
        logits = torch.zeros(3, scale.tokens, 4, 2)
        assert torch.equal(three.sample(logits, scale)[1], one.sample(logits[:1], scale)[0])


def test_scales_do_not_wait_for_each_other():
    def sampler() -> BitSampler:
        generator = torch.Generator().manual_seed(5)
        return BitSampler(SamplingSettings((1.0,) * 6), SMALL, 4, [generator], torch.device("cpu"))

    forwards, backwards = sampler(), sampler()
    logits = [torch.zeros(1, scale.tokens, 4, 2) for scale in SMALL]
    first = [forwards.sample(logits[scale.index], scale) for scale in SMALL]
    second = [backwards.sample(logits[scale.index], scale) for scale in reversed(SMALL.scales)]
    assert all(torch.equal(left, right) for left, right in zip(first, reversed(second), strict=True))


def test_temperature_belongs_to_the_scale():
    generator = torch.Generator().manual_seed(0)
    temperatures = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    sampler = BitSampler(SamplingSettings(temperatures), SMALL, 4, [generator], torch.device("cpu"))
    assert [sampler.temperature(scale) for scale in SMALL] == list(temperatures)
