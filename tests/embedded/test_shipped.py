"""The model inside the package: what a newcomer relies on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import stepvar
from stepvar.embedded import MODELS
from stepvar.models.common.t5 import UnknownWordError
from stepvar.scenes import check, evaluation_prompts

WEIGHTS = MODELS["pictures"]

PROMPT = "two yellow stars above a striped blue ring on sand"


@pytest.fixture(scope="module")
def pipe():
    return stepvar.load_embedded()


@pytest.fixture(scope="module")
def dense(pipe):
    return pipe(PROMPT, seed=3, output_type="pt").images


def decibels(first, second):
    return float(-10 * torch.log10((first - second).square().mean()))


@pytest.mark.parametrize("name", ["pictures", "pictures-384"])
def test_it_is_small(name):
    assert sum(file.stat().st_size for file in MODELS[name].rglob("*") if file.is_file()) <= 24e6


def test_a_seed_is_a_picture(pipe, dense):
    again = pipe(PROMPT, seed=3, output_type="pt", observer=lambda report: None).images
    other = pipe(PROMPT, seed=4, output_type="pt").images
    assert torch.equal(dense, again)
    assert not torch.equal(dense, other)


def test_late_scales_matter(pipe, dense):
    pruned = pipe(PROMPT, seed=3, output_type="pt", pruning="prune").images
    skipped = pipe(PROMPT, seed=3, output_type="pt", pruning="skip").images
    assert decibels(pruned, dense) > decibels(skipped, dense)


def test_it_follows_its_prompts(pipe):
    """A floor well below the model card's figures: a broken load, loop or plan follows nothing."""
    prompts = evaluation_prompts(24, seed=5)
    images = pipe([prompt.text for prompt in prompts], seed=list(range(24)), pruning="best").images
    results = [check(np.asarray(image), p.spec) for image, p in zip(images, prompts, strict=True)]
    assert sum(result.background is not False for result in results) >= 20
    assert sum(result.position is not False for result in results) >= 18


def test_an_unknown_word_is_refused_with_what_is_close(pipe):
    with pytest.raises(UnknownWordError, match=r"'yelow'.*yellow"):
        pipe("a yelow star")


def test_the_command_needs_no_file_but_the_package(tmp_path):
    command = [
        sys.executable,
        "-m",
        "stepvar.cli",
        "generate",
        PROMPT,
        "--seed",
        "1",
        "-o",
        "a.png",
        "--json",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(run.stdout)["tokens"] == {"kept": 2240, "total": 2240}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_larger_model_is_in_the_regime_of_the_paper():
    """Twelve scales whose last four lie close together: what they are skipped and pruned by hardly shows."""
    pipe = stepvar.load_embedded("pictures-384")
    summary = pipe.summary("paper")
    assert [scale.height for scale in pipe.schedule()][-4:] == [24, 32, 40, 48]
    assert summary.dense_flops > 8 * summary.flops
    dense, paper = (pipe(PROMPT, seed=7, output_type="pt", pruning=plan).images for plan in (None, "paper"))
    assert dense.shape[-2:] == (384, 384) and decibels(paper, dense) > 20.0
