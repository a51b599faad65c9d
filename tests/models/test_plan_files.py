"""Plan files: written, read back as the same plan, used by path; damaged ones refused in words."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import stepvar
from random_maps import random_maps
from stepvar import FasterVAR, FastVAR, StepVAR
from stepvar.checkpoints.errors import CheckpointError
from stepvar.generation.weight_sketch import WeightSketch
from stepvar.models.plan_files import load_plan, save_plan
from stepvar.pruning.presets import ChangedPreset
from stepvar.pruning.recovery import Guided
from tiny_pipeline import make_pipeline

RATIOS = {-2: 0.4, -1: 0.6}
PIPELINE = make_pipeline()


@pytest.fixture(scope="module")
def fitted() -> StepVAR:
    sketch = WeightSketch.of(PIPELINE.transformer)
    return StepVAR(RATIOS, recovery=random_maps([(6, 6), (8, 8)], 64, (1, 2), sketch), unguided=-1)


@pytest.fixture(scope="module")
def written(fitted, tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    assert save_plan(fitted, file) == [file, file.with_suffix(".safetensors")]
    return file


@pytest.mark.parametrize(
    "method",
    [
        StepVAR(RATIOS, skip=(-3,), score="texture", first_layer=0, values="expected"),
        StepVAR(RATIOS, recovery=Guided(radius=3)),
        StepVAR(RATIOS, recovery="anchor", score_options={}),
        FastVAR(RATIOS),
        FasterVAR({-2: 0.4}, shares={-1: (0.2, 0.3)}, unguided=-2, remaining="unconditional"),
    ],
)
def test_plans_of_every_method_are_read_back(tmp_path, method):
    assert save_plan(method, tmp_path / "plan.json") == [tmp_path / "plan.json"]
    assert load_plan(tmp_path / "plan.json") == method


def test_a_fitted_plan_is_used_by_its_path_and_named_in_settings(fitted, written, tmp_path):
    assert load_plan(written) == fitted == stepvar.load_plan(str(written))
    drawn = [
        PIPELINE("a red star", seed=2, pruning=plan) for plan in (fitted, written, str(written), "paper")
    ]
    pixels = [output.images[0].tobytes() for output in drawn]
    assert pixels[0] == pixels[1] == pixels[2] != pixels[3]
    # What a picture says of its plan is what the file says, and a file made of it is that plan again.
    assert drawn[1].report.settings["pruning"] == json.loads(written.read_text())["pruning"]
    shutil.copy(written.with_suffix(".safetensors"), tmp_path / "plan.safetensors")
    document = json.loads(written.read_text()) | {"pruning": drawn[0].report.settings["pruning"]}
    (tmp_path / "again.json").write_text(json.dumps(document))
    assert load_plan(tmp_path / "again.json") == fitted
    summary = PIPELINE.summary(written)
    assert f"fitted to these weights ({fitted.recovery.fitted_to.digest})" in str(summary)
    assert summary.as_json()["fitted_to"] == fitted.recovery.fitted_to.digest
    other_score = PIPELINE.summary(ChangedPreset(str(written), {"score": "texture"}))
    assert other_score.flops == summary.flops


def test_other_weights_are_refused_and_other_formats_are_not(written):
    with pytest.raises(
        ValueError, match="was fitted for other weights than this transformer's: run 'stepvar"
    ):
        make_pipeline(seed=1)("a red star", pruning=written)
    for dtype in (torch.bfloat16, torch.float16):
        assert make_pipeline().to(dtype).summary(written).plan.prunes


def test_a_batch_with_it_equals_single_runs(written):
    texts, seeds = ["a red star", "a blue ring on sand"], [2, 3]
    both = PIPELINE(texts, seed=seeds, pruning=written).report.choices
    for place, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        alone = PIPELINE(text, seed=seed, pruning=written).report.choices
        assert all(torch.equal(both[scale][place], drawn[0]) for scale, drawn in alone.items())


def change(document: dict, path: str, value) -> dict:
    *keys, last = path.split(".")
    place = document
    for key in keys:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("format", "other", "is no plan"),
        ("version", 2, r"is a plan of version 2; this stepvar reads version 1"),
        ("pruning.method", "os.system", "names none of the methods StepVAR, FastVAR, FasterVAR"),
        ("pruning.surprise", 1, "surprise is no field of StepVAR"),
        ("pruning.ratios", {"last": 0.5}, "holds no plan that can be used: invalid literal"),
        ("pruning.ratios", {"-1": 1.5}, "ratio of scale -1 is 1.5"),
        ("pruning.score", "magic", "Unknown score 'magic'"),
        ("pruning.recovery.name", "magic", "Unknown recovery 'magic'"),
        ("pruning.recovery.maps", [], "lists no maps"),
        ("pruning.recovery.maps.0.scale", "7x7", "holds other maps than"),
        ("pruning.recovery.maps.0.digest", "0" * 16, "is not the file that .* was written with"),
        ("pruning.recovery.layout", "0" * 16, "is not the file that .* was written with"),
        ("maps", "../plan.safetensors", 'its "maps" is no name'),
        ("maps", "plan.pth", 'its "maps" is no name'),
        ("maps", "absent.safetensors", "absent.safetensors' cannot be read: No such file"),
    ],
)
def test_wrong_documents_are_one_sentence(written, tmp_path, path, value, words):
    for file in (written, written.with_suffix(".safetensors")):
        shutil.copy(file, tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(change(json.loads(written.read_text()), path, value)))
    with pytest.raises(CheckpointError, match=words) as error:
        load_plan(tmp_path / "plan.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensors: tensors | {"6x6.bias": tensors["6x6.bias"] * torch.nan}, "not finite"),
        (lambda tensors: tensors | {"6x6.bias": tensors["6x6.bias"][1:].clone()}, "has shapes"),
        (lambda tensors: tensors | {"6x6.bias": tensors["6x6.bias"].half()}, "float16"),
        (lambda tensors: tensors | {"extra": torch.zeros(1)}, "holds other maps"),
        (lambda tensors: tensors | {"sketch": torch.zeros(3, 2)}, "which weights it was fitted for"),
    ],
)
def test_damaged_maps_are_one_sentence(written, tmp_path, damage, words):
    shutil.copy(written, tmp_path)
    save_file(damage(load_file(written.with_suffix(".safetensors"))), tmp_path / "plan.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_plan(tmp_path / "plan.json")
    (tmp_path / "plan.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(CheckpointError, match="damaged"):
        load_plan(tmp_path / "plan.json")


def test_maps_outside_the_folder_are_not_read(written, tmp_path):
    shutil.copy(written, tmp_path)
    (tmp_path / "plan.safetensors").symlink_to(written.with_suffix(".safetensors"))
    with pytest.raises(CheckpointError, match="leads outside the folder of its plan"):
        load_plan(tmp_path / "plan.json")


def test_what_cannot_be_written_down_is_refused(tmp_path):
    def own(tokens):
        return tokens.features[..., 0]

    for method, words in (
        (stepvar.SkipVAR(), "no SkipVAR"),
        (StepVAR(RATIOS, score=own), "The score of this plan has no name"),
        (StepVAR(RATIOS, recovery=random_maps([(6, 6)], 64, (1, 2))), "does not say which weights"),
    ):
        with pytest.raises(ValueError, match=words):
            save_plan(method, tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"let it end with \.json"):
        save_plan(StepVAR(RATIOS), tmp_path / "plan")
    assert not any(tmp_path.iterdir())
