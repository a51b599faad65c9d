"""The video model inside the package: what a newcomer relies on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import stepvar
from stepvar.embedded import MODELS
from stepvar.scenes.moving.checker import check
from stepvar.scenes.moving.grammar import evaluation_prompts
from stepvar.scenes.moving.scenes import CANVAS, FRAMES

PROMPT = "a red circle moves to the left on grass"


@pytest.fixture(scope="module")
def pipe():
    pipeline = stepvar.load_embedded("video")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def dense(pipe):
    return frames_of(pipe, seed=3)


def frames_of(pipe, prompt=PROMPT, **settings):
    return np.stack([np.asarray(frame) for frame in pipe(prompt, **settings).frames[0]])


def decibels(first, second):
    error = np.square(first.astype(float) - second).mean()
    return float(10 * np.log10(255.0**2 / error))


def test_it_is_small():
    assert sum(file.stat().st_size for file in MODELS["video"].rglob("*") if file.is_file()) <= 24e6


def test_a_seed_is_a_video(pipe, dense):
    again, other = (frames_of(pipe, seed=seed) for seed in (3, 4))
    assert dense.shape == (FRAMES, CANVAS, CANVAS, 3)
    assert np.array_equal(dense, again) and not np.array_equal(dense, other)


def test_pruning_the_last_step_costs_less_than_leaving_it_out(pipe, dense):
    pruned = frames_of(pipe, seed=3, pruning=stepvar.StepVAR(ratios={-1: 0.3}))
    skipped = frames_of(pipe, seed=3, pruning="skip")
    assert decibels(pruned, dense) > decibels(skipped, dense)


def test_it_follows_its_prompts(pipe):
    """A floor well below the model card's figures: a broken load or loop follows nothing."""
    prompts = evaluation_prompts(16, seed=5)
    found = [check(frames_of(pipe, p.text, seed=seed), p.spec) for seed, p in enumerate(prompts)]
    assert sum(result.background is not False for result in found) >= 13
    assert sum(result.colours is not False for result in found) >= 11
    assert sum(result.motion is not False for result in found) >= 8


def test_the_command_writes_a_video_and_needs_no_file_but_the_package(tmp_path):
    command = [sys.executable, "-m", "stepvar.cli", "generate", PROMPT, "--model", "embedded-video",
               "--seed", "1", "--pruning", "paper", "-o", "a.mp4", "--json"]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    tokens = json.loads(run.stdout)["tokens"]
    assert tokens["kept"] < tokens["total"] == 1113
    assert b"ftyp" in (tmp_path / "a.mp4").read_bytes()[:12]
