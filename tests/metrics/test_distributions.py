"""Fréchet distance, extractors, diversity, LPIPS and peak memory."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.metrics import frechet
from stepvar.metrics.features import (
    ClipFeatures,
    InceptionFeatures,
    TokenizerFeatures,
    alignment,
    diversity,
    extract,
    load_extractor,
)
from stepvar.metrics.frechet import (
    FrechetReference,
    frechet_distance,
    frechet_interval,
    require_enough,
)
from stepvar.metrics.memory import with_peak_memory
from stepvar.metrics.perceptual import load_lpips, missing_for_lpips, scene_distance
from stepvar.metrics.statistics import Interval, resamples, statistic_interval


def gaussian(seed, count, mean=0.0, deviation=1.0, channels=6):
    return mean + deviation * np.random.default_rng(seed).normal(size=(count, channels))


def test_frechet_distance_of_known_gaussians():
    features = gaussian(0, 500)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    # A shift moves the means; a stretch by s adds (s - 1)^2 times the variance of every channel.
    assert frechet_distance(features, features + 2.0) == pytest.approx(6 * 4.0)
    assert frechet_distance(
        features, 3.0 * (features - features.mean(0)) + features.mean(0)
    ) == pytest.approx(4.0 * features.var(axis=0, ddof=1).sum())


def test_frechet_distance_is_the_definition():
    from scipy.linalg import sqrtm

    first, second = gaussian(1, 40) @ gaussian(2, 6), gaussian(3, 50, mean=0.3) @ gaussian(4, 6)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    shift = first.mean(0) - second.mean(0)
    plain = shift @ shift + np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet_distance(first, second) == pytest.approx(plain)
    assert frechet_distance(second, first) == pytest.approx(plain)


def test_frechet_intervals_tell_near_from_far():
    dense = gaussian(5, 150)
    near, far = dense + gaussian(6, 150, 0.1, 0.2), dense + gaussian(7, 150, 0.5, 0.4)
    interval = frechet_interval(dense, far)
    assert interval.low < interval.value < interval.high and interval.above_zero
    reference = FrechetReference(dense)
    assert reference.difference(near, far).below_zero
    assert reference.difference(far, near).above_zero
    assert not reference.difference(near, near).excludes_zero


@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_resampled_distance_is_the_distance_of_the_resample(count, channels, seed):
    first, second = (gaussian(seed + side, count, side, channels=channels) for side in (0, 1))
    reference = FrechetReference(first, repeats=4)
    places = [np.arange(count), *resamples(count, 4)]
    expected = [frechet_distance(first[rows], second[rows]) for rows in places]
    assert np.allclose(reference.distances(second), expected, rtol=1e-6, atol=1e-6)
    interval = frechet_interval(first, second, repeats=4)
    plain = statistic_interval(lambda rows: frechet_distance(first[rows], second[rows]), count, 4, True)
    assert interval.n == count and np.allclose(list(vars(interval).values()), list(vars(plain).values()))
    with pytest.raises(ValueError, match="Features of the same pictures"):
        reference.distances(second[:, :0])


@pytest.mark.parametrize(("count", "channels"), [(40, 12), (12, 40), (30, 30), (2, 5)])
def test_products_of_pictures_give_the_same_as_covariances(monkeypatch, count, channels):
    first, second = (gaussian(side, count, side, channels=channels) for side in (0, 1))
    plain = FrechetReference(first, repeats=8).distances(second)
    assert plain[0] == pytest.approx(frechet_distance(first, second), abs=1e-6)
    monkeypatch.setattr(frechet, "_LARGEST_COVARIANCES", 0)
    assert np.allclose(FrechetReference(first, repeats=8).distances(second), plain, rtol=1e-6, atol=1e-6)


def test_resamples_become_fewer_before_a_distance_takes_too_long(monkeypatch):
    first = gaussian(0, 60, channels=20)
    second = first + 0.5 * gaussian(1, 60, 0.3, channels=20)
    full = frechet_interval(first, second)
    monkeypatch.setattr(frechet, "_LARGEST_COVARIANCES", 0)
    monkeypatch.setattr(frechet, "_MOST_WORK", 1)
    reference = FrechetReference(first)
    assert len(reference.distances(second)) == 1 + frechet.FEWEST_RESAMPLES
    few = reference.interval(second)
    assert few.value == pytest.approx(full.value) and few.low < few.value < few.high
    # The standard error of the width is 16 %; this seed is within two of them.
    assert few.high - few.low == pytest.approx(full.high - full.low, rel=0.32)
    assert reference.difference(second, second) == Interval(0.0, 0.0, 0.0, 60)


@pytest.mark.slow
def test_inceptions_features_take_bounded_time_and_memory():
    base = gaussian(0, 600, channels=2048)
    other = base + 0.3 * gaussian(1, 600, channels=2048)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    found = frechet_interval(base.astype(np.float32), other.astype(np.float32))
    assert time.process_time() - started < 60.0 and found.low < found.value < found.high
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: frechet_distance(gaussian(0, 1), gaussian(1, 9)), "at least 2 pictures a side; got 1"),
        (lambda: frechet_distance(gaussian(0, 9), gaussian(1, 9, channels=5)), "one extractor"),
        (lambda: require_enough(50, 2048, "'dense'"), "'dense' has 50 pictures.*more than 2048"),
    ],
)
def test_too_few_pictures_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.fixture(scope="module")
def pipeline():
    from tiny_pipeline import make_pipeline

    return make_pipeline()


def pictures(count, seed=0, side=64):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_tokenizer_features_do_not_depend_on_the_batch(pipeline):
    extractor = load_extractor("tokenizer", None, pipeline.vae)
    assert isinstance(extractor, TokenizerFeatures)
    some = list(pictures(5))
    together, apart = extract(extractor, some), extract(extractor, some, batch=1)
    assert together.shape == (5, 2 * 8) and together.dtype == np.float32
    np.testing.assert_allclose(together, apart, atol=1e-4)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with random weights, and a word tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    from stepvar.scenes.text_encoder import build_word_tokenizer

    words = build_word_tokenizer()
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sides, "vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": 1}
    config = CLIPConfig(
        text_config=text, vision_config={**sides, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_clip_features_and_alignment(clip_folder):
    clip = load_extractor("clip", clip_folder)
    assert isinstance(clip, ClipFeatures)
    seen, read = clip(pictures(3, side=40)), clip.texts(["a red star", "water", "a ring " * 30])
    for features in (seen, read):
        assert features.shape == (3, 8)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-5)
    scores = alignment(seen, read)
    assert scores.shape == (3,) and (scores >= 0).all() and (scores <= 1).all()
    assert alignment(read, read) == pytest.approx(1.0)


def test_clip_sees_what_its_own_processor_prepares(clip_folder):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "CLIPImageProcessorPil"):
        pytest.skip("this transformers prepares pictures with torchvision only")
    from stepvar.metrics.features import _clip_input

    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    theirs = processor([picture], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(_clip_input(picture, 32), theirs, atol=2e-2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inseption", None), "Unknown features 'inseption'; known are tokenizer, scenes, inception, clip"),
        (("inception", None), "need weights"),
        (("clip", None), "need weights"),
        (("tokenizer", None), "gives no features"),
    ],
)
def test_unknown_extractors_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        load_extractor(*arguments)


def test_weights_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        InceptionFeatures(tmp_path / "absent.pth")
    executable = tmp_path / "code.pth"
    torch.save({"code": print}, executable)
    with pytest.raises(ValueError, match="nothing in it was run"):
        InceptionFeatures(executable)
    with pytest.raises(ValueError, match="no folder"):
        ClipFeatures(tmp_path / "absent")
    with pytest.raises(ValueError, match="no usable CLIP"):
        ClipFeatures(tmp_path)


def test_diversity_is_the_mean_distance_of_pairs():
    assert diversity(np.array([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5.0)
    assert diversity(np.zeros((4, 3))) == 0.0
    with pytest.raises(ValueError, match="at least 2 seeds"):
        diversity(np.zeros((1, 3)))


def test_lpips_says_what_it_lacks_or_works():
    missing = missing_for_lpips()
    if missing is not None:
        assert missing.startswith("LPIPS needs ")
        with pytest.raises(ValueError, match="LPIPS needs"):
            load_lpips()
    else:
        distance, (first, second) = load_lpips(), pictures(2)
        same, other = distance(np.stack([first, first]), np.stack([first, second]))
        assert same == pytest.approx(0.0, abs=1e-6) and other > 0.01
    for wrong in ("vgg19", "weights.pth"):
        with pytest.raises(ValueError, match=f"Unknown LPIPS network '{wrong}'"):
            missing_for_lpips(wrong)
    assert missing_for_lpips("nowhere/alexnet-owt-7be5be79.pth") is not None


def test_scene_distance_grows_with_damage_and_sees_objects_before_grain():
    from stepvar.scenes import evaluation_prompts, render, scene_for
    from stepvar.scenes.network import load_scene_network

    prompts = evaluation_prompts(4, 5)
    scenes = [scene_for(np.random.default_rng(index), prompt.spec, split="any", canvas=192)
              for index, prompt in enumerate(prompts)]  # fmt: skip
    clean = np.stack([render(scene, 192, seed=1) for scene in scenes])
    grained = np.stack([render(scene, 192, seed=2) for scene in scenes])
    noise = np.random.default_rng(0).normal(size=clean.shape)
    distance = scene_distance(load_scene_network())
    assert np.allclose(distance(clean, clean), 0.0, atol=1e-9)
    assert np.allclose(distance(clean, grained), distance(grained, clean))
    damaged = [np.clip(clean + level * noise, 0, 255).astype(np.uint8) for level in (4, 16, 64)]
    assert (np.diff([distance(clean, pictures) for pictures in damaged], axis=0) > 0).all()
    others = np.roll(clean, 1, axis=0)
    assert (distance(clean, grained) < 0.5 * distance(clean, others)).all(), "another grain is no other scene"
    assert np.allclose(distance(clean, others)[1:2], distance(clean[1:2], others[1:2])), "pairs are apart"


def test_peak_memory_sees_what_is_gone_again():
    def work():
        torch.ones(50_000_000).sum()
        return "done"

    result, grown = with_peak_memory(work, torch.device("cpu"))
    assert result == "done"
    if grown is not None:
        assert 190e6 < grown < 260e6
        assert with_peak_memory(lambda: None, torch.device("cpu"))[1] < 20e6


def test_the_scene_network_is_an_extractor_that_tells_scenes_apart():
    from stepvar.metrics.features import extract, load_extractor
    from stepvar.scenes import render, sample

    random = np.random.default_rng(5)
    pictures = [render(sample(random)[1], seed=index) for index in range(4)]
    features = extract(load_extractor("scenes", None), pictures)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-3)
    assert np.linalg.norm(features[0] - features[1]) > 0.05
