"""Commands without --model run the model that ships inside the package."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import stepvar.embedded
from stepvar.embedded import MODELS

WEIGHTS = MODELS["pictures"]

PROMPT = "two yellow stars above a striped blue ring on sand"

needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the embedded model is not trained yet")


@needs_weights
def test_generate_draws_the_same_picture_twice(run):
    for name in ("a.png", "b.png"):
        assert run("generate", PROMPT, "--seed", 3, "--pruning", "prune", "-o", name).code == 0
    first, second = (np.asarray(Image.open(name)) for name in ("a.png", "b.png"))
    assert np.array_equal(first, second) and first.std() > 10


@needs_weights
def test_compare_needs_nothing_but_a_prompt(run, tmp_path):
    document = run("compare", PROMPT, "--seed", 3, "--repeats", 1, "--json").json
    assert (tmp_path / document["file"]).is_file()
    assert document["pruned"]["tokens"] < document["dense"]["tokens"]


@needs_weights
def test_pictures_show_what_prompts_say(run):
    document = run("evaluate", "scenes", "-n", 12, "--json").json
    assert document["overall"] > 0.2


@needs_weights
def test_unknown_words_come_with_known_ones(run):
    result = run("generate", "a red sttar")
    assert result.code == 2 and "star" in result.stderr


def test_an_installation_without_weights(run, monkeypatch, tmp_path):
    monkeypatch.setitem(stepvar.embedded.MODELS, "pictures", tmp_path / "weights")
    result = run("generate", "a red star")
    assert result.code == 2 and "--model DIR" in result.stderr
