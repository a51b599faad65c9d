"""Scores of pictures against their prompts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stepvar.evaluation.scene_score import evaluate_generation, evaluate_reconstructions
from stepvar.scenes import CATEGORIES, parse, render, scene_for


class Painter:
    """Draws what each prompt says, but a plain grey for every prompt whose seed is in `wrong`."""

    def __init__(self, wrong=()):
        self.wrong, self.seeds, self.calls = set(wrong), [], []

    def __call__(self, prompts, seed, pruning=None, **settings):
        self.seeds += seed
        self.calls.append((len(prompts), pruning, settings))
        return SimpleNamespace(images=[self.paint(*job) for job in zip(prompts, seed, strict=True)])

    def paint(self, prompt, seed):
        if seed in self.wrong:
            return Image.new("RGB", (192, 192), "grey")
        return Image.fromarray(render(scene_for(np.random.default_rng(seed), parse(prompt)), seed=seed))


def test_right_pictures_score_one():
    painter, judged = Painter(), []
    scores = evaluate_generation(painter, 14, seed=5, batch=4, advance=judged.append)
    assert scores.overall == 1.0 and scores.interval() == (1.0, 1.0)
    assert scores.categories == dict.fromkeys(CATEGORIES, 1.0)
    assert painter.seeds == list(range(5, 19)) and judged == [4, 4, 4, 2]


def test_wrong_pictures_count_where_they_belong():
    # Prompts go round the categories: the first and the seventh are of the first one.
    scores = evaluate_generation(Painter(wrong=[0, 6]), 12, seed=0, pruning="paper", settings={"top_k": 1})
    document = scores.as_json()
    assert document["overall"] == pytest.approx(10 / 12)
    assert document["categories"][CATEGORIES[0]] == 0.0
    assert all(document["categories"][name] == 1.0 for name in CATEGORIES[1:])
    assert document["aspects"]["count"] == pytest.approx(10 / 12)
    low, high = document["interval"]
    assert 0.5 < low < 10 / 12 < high <= 1.0
    splits = document["held_out"], document["seen"]
    assert sum(part["n"] for part in splits) == 12
    assert sum(part["overall"] * part["n"] for part in splits) == pytest.approx(10)


def test_settings_reach_the_pipeline():
    painter = Painter()
    evaluate_generation(painter, 3, pruning="paper", batch=2, settings={"top_k": 1})
    assert painter.calls == [(2, "paper", {"top_k": 1}), (1, "paper", {"top_k": 1})]


def test_a_category_without_prompts_has_no_score():
    assert evaluate_generation(Painter(), 1).categories[CATEGORIES[-1]] is None


def test_reconstructions_of_a_perfect_tokenizer():
    import torch

    class Perfect:
        device = torch.device("cpu")

        def encode(self, images, grids):
            assert grids == [(1, 1), (24, 24)]
            return SimpleNamespace(latent=images)

        def decode_pixels(self, latent):
            return latent

    from stepvar.generation.schedule import ScaleSchedule

    pipeline = SimpleNamespace(
        vae=Perfect(),
        pixels=lambda schedule: (schedule.final.height * 8, schedule.final.width * 8),
        schedule=lambda: ScaleSchedule.from_grids([(1, 1), (24, 24)]),
    )
    assert evaluate_reconstructions(pipeline, 12, batch=5).overall == 1.0
    pipeline.schedule = lambda: ScaleSchedule.from_grids([(1, 1), (24, 12)])
    with pytest.raises(ValueError, match="square"):
        evaluate_reconstructions(pipeline, 1)


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="at least one"):
        evaluate_generation(Painter(), 0)
