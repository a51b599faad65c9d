"""Sampling of bits and codes: filters, frequencies and whose noise is whose."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.generation.sampling import (
    BitSampler,
    CodebookSampler,
    CodebookSettings,
    SamplingSettings,
    bit_probabilities,
    draw_index,
    filter_logits,
    gumbel_softmax,
    smoothing_temperature,
)
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


VOCABULARY = 12


def codebook_sampler(*seeds: int, **changes) -> CodebookSampler:
    """A sampler on SMALL with one-hot codes, so that codes show the weights of a mixture."""
    fields = {"temperature": (1.0,) * 6, "top_k": (0,) * 6, "top_p": 0.0, "smoothing": (None,) * 6}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    configured = CodebookSettings(**{**fields, **changes})
    return CodebookSampler(configured, SMALL, torch.eye(VOCABULARY), generators, torch.device("cpu"))


def codebook_logits(images: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(images, tokens, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def official_filter(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The reference's filters, written out entry by entry."""
    kept = []
    for row in logits.double().flatten(0, -2).tolist():
        largest = sorted(row, reverse=True)[top_k - 1] if top_k else -math.inf
        left = [value if value >= largest else -math.inf for value in row]
        weights = [math.exp(value) for value in left]
        cumulated, gone = 0.0, set()
        for place in sorted(range(len(left)), key=left.__getitem__)[:-1] if top_p else []:
            cumulated += weights[place] / sum(weights)
            if cumulated <= 1 - top_p:
                gone.add(place)
        kept.append([-math.inf if place in gone else value for place, value in enumerate(left)])
    return torch.tensor(kept).view(logits.shape)


@given(st.integers(0, 1000), st.sampled_from([0, 1, 3, 12]), st.sampled_from([0.0, 0.3, 0.8, 0.95]))
@settings(max_examples=60, deadline=None)
def test_codebook_filters_equal_the_reference(seed, top_k, top_p):
    logits = codebook_logits(1, 4, seed)
    torch.testing.assert_close(filter_logits(logits, top_k, top_p), official_filter(logits, top_k, top_p))


def test_ties_with_the_last_of_the_top_k_stay():
    assert filter_logits(torch.tensor([1.0, 3.0, 1.0, 0.0]), top_k=2).isfinite().tolist() == [1, 1, 1, 0]


def test_top_p_always_leaves_the_likeliest():
    assert filter_logits(torch.tensor([0.0, 0.1, 0.05]), top_p=1e-6).isfinite().tolist() == [0, 1, 0]


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True, width=32))
@settings(max_examples=80, deadline=None)
def test_a_filtered_code_is_never_drawn(seed, uniform):
    logits = filter_logits(codebook_logits(1, 1, seed), top_k=3)
    index = draw_index(logits, torch.tensor([[uniform]]))
    assert logits.gather(-1, index[..., None]).isfinite().all()


def test_codes_come_as_often_as_their_probability():
    logits = codebook_logits(1, 1)
    uniform = torch.rand(1, 40000, generator=torch.Generator().manual_seed(1))
    drawn = draw_index(logits.expand(1, 40000, VOCABULARY), uniform)
    shares = torch.bincount(drawn.flatten(), minlength=VOCABULARY) / 40000
    torch.testing.assert_close(shares, logits.softmax(-1).flatten(), rtol=0, atol=0.01)


def test_top_k_one_takes_the_likeliest_code():
    sampler = codebook_sampler(0, top_k=(1,) * 6)
    logits = codebook_logits(1, SMALL.final.tokens)
    choice = sampler.sample(logits, SMALL.final)
    assert torch.equal(choice.index, logits.argmax(-1))
    assert torch.equal(choice.codes.argmax(-1), choice.index)


@pytest.mark.parametrize("smoothing", [(None,) * 6, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)])
def test_code_noise_of_an_image_comes_from_its_generator_alone(smoothing):
    three, one = codebook_sampler(1, 2, 3, smoothing=smoothing), codebook_sampler(2, smoothing=smoothing)
    for scale in reversed(SMALL.scales):
        logits = codebook_logits(3, scale.tokens)
        together, alone = three.sample(logits, scale), one.sample(logits[1:2], scale)
        assert torch.equal(together.index[1], alone.index[0])
        torch.testing.assert_close(together.codes[1], alone.codes[0], rtol=0, atol=1e-6)


def test_a_mixture_has_no_share_of_filtered_codes_unless_asked():
    logits = codebook_logits(1, SMALL.final.tokens)
    for filter_smoothed in (True, False):
        sampler = codebook_sampler(0, top_k=(3,) * 6, smoothing=(0.0,) * 6, filter_smoothed=filter_smoothed)
        codes = sampler.sample(logits, SMALL.final).codes
        torch.testing.assert_close(codes.sum(-1), torch.ones(1, SMALL.final.tokens))
        assert ((codes > 0).sum(-1) <= 3).all() == filter_smoothed


def test_mixtures_sharpen_towards_the_last_scale():
    assert smoothing_temperature(0.0) == pytest.approx(0.27)
    assert smoothing_temperature(1.0) == pytest.approx(0.0135)
    assert smoothing_temperature(1.1) == 0.005
    logits, last = codebook_logits(1, SMALL.final.tokens), SMALL.final
    largest = [
        float(codebook_sampler(0, smoothing=(progress,) * 6).sample(logits, last).codes.amax(-1).mean())
        for progress in (0.0, 0.5, 1.0)
    ]
    assert largest == sorted(largest)
    assert largest[-1] > 0.98


def test_the_likeliest_share_of_a_cold_mixture_follows_the_distribution():
    """A cold mixture picks one code, as often as the logits say: the noise is Gumbel's."""
    logits = codebook_logits(1, 1).expand(1, 40000, VOCABULARY)
    noise = torch.empty(logits.shape).exponential_(generator=torch.Generator().manual_seed(3))
    picked = gumbel_softmax(logits, noise, 0.01).argmax(-1)
    shares = torch.bincount(picked.flatten(), minlength=VOCABULARY) / 40000
    torch.testing.assert_close(shares, logits[0, 0].softmax(-1), rtol=0, atol=0.01)
