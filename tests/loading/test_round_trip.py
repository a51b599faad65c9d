"""Every pipeline comes back from the folder it was saved to, in Python and by diffusers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import stepvar
import tiny_hart
import tiny_pipeline
import tiny_star
import tiny_switti
import tiny_var
import tiny_varedit
from stepvar.checkpoints.errors import CheckpointError
from stepvar.models import MODELS

LABELS = ["a", "b", "c", "d", "e", "f"]


def make(key: str):
    """A tiny pipeline of a model, and what to draw with it."""
    makers = {
        "infinity": (tiny_pipeline.make_pipeline, "a red star", {}),
        "infinitystar": (tiny_star.make_star_pipeline, "a red star", {"seconds": 0}),
        "var": (lambda: tiny_var.make_var_pipeline(LABELS), 2, {}),
        "hart": (tiny_hart.make_pipeline, "a red ring", {}),
        "switti": (tiny_switti.make_switti_pipeline, "a red ring", {}),
        "varedit": (tiny_varedit.make_varedit_pipeline, "a red ring", {"image": tiny_varedit.SOURCE}),
    }
    maker, prompt, options = makers[key]
    return maker(), prompt, options


def drawn(pipeline, prompt, options) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(prompt, seed=3, output_type="pt", **options)
    pixels = result.frames if hasattr(result, "frames") else result.images
    return pixels[0] if isinstance(pixels, list) else pixels


@pytest.fixture(scope="module", params=[spec.key for spec in MODELS])
def saved(request, tmp_path_factory):
    """Key of a model, a folder of its pipeline, what was drawn before it was saved, and what to draw."""
    pipeline, prompt, options = make(request.param)
    before = drawn(pipeline, prompt, options)
    folder = tmp_path_factory.mktemp("saved") / request.param
    pipeline.save_pretrained(folder)
    return request.param, folder, before, (prompt, options)


def test_a_saved_pipeline_draws_the_same_picture(saved):
    key, folder, before, call = saved
    spec = next(spec for spec in MODELS if spec.key == key)
    assert torch.equal(drawn(spec.pipeline_class.from_pretrained(folder), *call), before)
    loaded = stepvar.load(folder)
    assert type(loaded) is spec.pipeline_class
    assert torch.equal(drawn(loaded, *call), before)
    again = folder.parent / f"{key}-again"
    loaded.save_pretrained(again)
    assert torch.equal(drawn(stepvar.load(str(again)), *call), before)


def test_diffusers_opens_a_saved_folder_by_itself(saved):
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, DiffusionPipeline

    key, folder, before, call = saved
    # Weights that stay mapped lie at other addresses, which changes the last bits of some products.
    opened = DiffusionPipeline.from_pretrained(folder, disable_mmap=True)
    assert torch.equal(drawn(opened, *call), before)
    spec = next(spec for spec in MODELS if spec.key == key)
    automatic = {
        "text-to-image": AutoPipelineForText2Image,
        "image-to-image": AutoPipelineForImage2Image,
    }
    if spec.task in automatic:
        assert torch.equal(drawn(automatic[spec.task].from_pretrained(str(folder)), *call), before)


@pytest.mark.parametrize(
    "opening",
    [
        "stepvar; from diffusers import DiffusionPipeline as D; D.from_pretrained(folder)",
        "stepvar; from diffusers import AutoPipelineForText2Image as A; A.from_pretrained(folder)",
        "stepvar.models.var.pipeline; import diffusers; diffusers.DiffusionPipeline.from_pretrained(folder)",
        "diffusers; D = diffusers.DiffusionPipeline; import stepvar; D.from_pretrained(folder)",
        "diffusers; diffusers.DiffusionPipeline.from_pretrained("
        'folder, custom_pipeline="pipeline", trust_remote_code=True)',
    ],
)
def test_another_process_opens_a_saved_folder(opening, tmp_path):
    make("hart")[0].save_pretrained(tmp_path / "saved")
    code = f"folder = {str(tmp_path / 'saved')!r}; import {opening}"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_saved_folder_has_a_card(saved):
    key, folder, _before, _call = saved
    spec = next(spec for spec in MODELS if spec.key == key)
    card = (folder / "README.md").read_text()
    header = card.split("---")[1]
    assert "library_name: stepvar" in header
    assert f"base_model: {spec.repository}" in header
    assert f"license: {spec.license or 'other'}" in header
    assert f"pipeline_tag: {spec.task}" in header
    assert str(folder.parent) not in card


def test_a_card_of_its_author_stays(tmp_path):
    pipeline, _prompt, _options = make("var")
    (tmp_path / "README.md").write_text("mine")
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_folders_of_earlier_versions_load(saved):
    key, folder, before, call = saved
    index = json.loads((folder / "model_index.json").read_text())
    _library, name = index["vae"]
    former = name.replace("VAE", "Tokenizer")
    old = {**index, "vae": [f"stepvar.models.{key}.tokenizer", former]}
    old["transformer"] = [f"stepvar.models.{key}.transformer", index["transformer"][1]]
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(old))
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "_class_name": former}))
    try:
        assert torch.equal(drawn(stepvar.load(folder), *call), before)
    finally:
        (folder / "model_index.json").write_text(json.dumps(index))
        (folder / "vae" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("key", "setting", "value"),
    [
        ("infinity", "temperature", [None, None]),
        ("infinitystar", "picture_temperature", "warm"),
        ("infinitystar", "marks_duration", [1]),
        ("var", "smooth", "yes"),
        ("hart", "top_k", {}),
        ("switti", "late_temperature", True),
        ("varedit", "guidance_scale", {"first": 3}),
    ],
)
def test_saved_settings_of_another_kind_are_refused(tmp_path, key, setting, value):
    make(key)[0].save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, setting: value}))
    with pytest.raises(CheckpointError, match=f"{setting} is "):
        stepvar.load(tmp_path)
