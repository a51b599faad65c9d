"""The script of a diffusers user, `examples/diffusers_user.py`, step by step."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import stepvar

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "examples" / "diffusers_user.py"


@pytest.fixture(scope="module")
def user():
    spec = importlib.util.spec_from_file_location("diffusers_user", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pipe():
    pipeline = stepvar.load_embedded()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_generator_is_a_seed(user, pipe):
    assert torch.equal(user.text_to_image(pipe), user.draw(pipe))


def test_a_callback_watches_and_stops(user, pipe):
    assert user.watch_and_stop(pipe, 3) == [0, 1, 2, 3]


def test_a_saved_folder_draws_the_same_and_has_a_card(user, pipe, tmp_path):
    assert torch.equal(user.save_and_reload(pipe, tmp_path / "model"), user.draw(pipe))
    preview = user.preview_push(pipe)
    assert "README.md" in preview.files
    assert "library_name: stepvar" in preview.card


def test_lora_acts_and_leaves_without_a_trace(user, pipe, tmp_path):
    pytest.importorskip("peft")
    before = user.draw(pipe)
    adapted, after = user.use_lora(pipe, tmp_path)
    assert torch.equal(before, after)
    assert not torch.equal(before, adapted)


def test_int8_stays_near(user, pipe):
    pytest.importorskip("torchao")
    assert user.psnr(user.to_int8(pipe), user.draw(stepvar.load_embedded())) > 15.0


def test_compiled_blocks_draw_the_same(user, pipe):
    before = user.draw(pipe)
    assert user.psnr(user.compile_blocks(pipe, "eager"), before) > 40.0
