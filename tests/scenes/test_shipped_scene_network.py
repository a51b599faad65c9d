"""The feature network of scenes inside the package: what its users rely on."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from stepvar.scenes import evaluation_prompts, render, scene_for
from stepvar.scenes.network import WEIGHTS, load_scene_network
from stepvar.training.scene_network.measure import measure

FRESH = 7_919
"""Seed of renders that neither training nor the model card's figures saw."""


@pytest.fixture(scope="module")
def network():
    return load_scene_network()


def scenes(count, seed, canvas=192):
    random = np.random.default_rng(seed)
    prompts = evaluation_prompts(count, seed)
    drawn = [scene_for(random, prompt.spec, split="any", canvas=canvas) for prompt in prompts]
    return prompts, np.stack([render(scene, canvas, seed + index) for index, scene in enumerate(drawn)])


def test_it_is_small():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 3e6


@pytest.mark.parametrize("canvas", [192, 256])
def test_it_reads_attributes_of_renders_it_never_saw(network, canvas):
    """Floors below the measured figures: 120 pictures have some luck."""
    figures = measure(network, 120, canvas, FRESH)
    assert figures["average"] >= 0.97
    assert figures["unseen"]["average"] >= 0.97
    sizes = figures["accuracy"].pop("size")
    assert sizes >= 0.8
    assert min(figures["accuracy"].values()) >= 0.98
    assert figures["matching"]["average"] >= 0.92


def test_a_prompt_fits_its_own_picture_best(network):
    prompts, pictures = scenes(48, FRESH)
    cosines = network(pictures) @ network.texts([prompt.text for prompt in prompts]).T
    assert (cosines.argmax(axis=1) == np.arange(48)).mean() >= 0.9


def test_words_of_one_meaning_score_alike(network):
    _, pictures = scenes(24, FRESH)
    first, second = (
        network.scores(pictures, [text] * 24)
        for text in ("a big spotted star on sand", "a large dotted star on the sand")
    )
    assert np.abs(first - second).max() < 0.15


def test_features_notice_worse_pictures_more(network):
    """Mean distance of the features to those of the untouched pictures grows with blur and with noise."""
    _, pictures = scenes(24, FRESH)
    clean = network(pictures)

    def distance(changed):
        return np.linalg.norm(network(changed) - clean, axis=1).mean()

    blurred = [uniform_filter(pictures, size=(0, size, size, 0)) for size in (3, 7, 15)]
    noise = np.random.default_rng(0).normal(size=pictures.shape)
    noisy = [np.clip(pictures + level * noise, 0, 255).astype(np.uint8) for level in (10, 40, 90)]
    for worse in (blurred, noisy):
        near, middle, far = map(distance, worse)
        assert near < middle < far


def test_pictures_of_other_scenes_are_further_than_other_pictures_of_the_same(network):
    random = np.random.default_rng(FRESH)
    prompts = evaluation_prompts(24, FRESH)
    drawn = [scene_for(random, prompt.spec, split="any") for prompt in prompts]
    first, second = (
        network(np.stack([render(scene, 192, seed + index) for index, scene in enumerate(drawn)]))
        for seed in (0, 1000)
    )
    same = np.linalg.norm(first - second, axis=1)
    other = np.linalg.norm(first - np.roll(first, 1, axis=0), axis=1)
    assert same.max() < other.mean() / 3
