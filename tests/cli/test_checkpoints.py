"""`stepvar convert` and `stepvar conformance`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    """A case in the form of the golden ones, of a small visual tokenizer, made with our own model."""
    from stepvar.models.infinity.vae import InfinityVAE

    folder = tmp_path_factory.mktemp("cases") / "vae"
    folder.mkdir()
    torch.manual_seed(0)
    levels = (1, 1, 2)
    tokenizer = InfinityVAE(
        codebook_dim=16, base_channels=24, encoder_multipliers=levels, decoder_multipliers=levels
    ).eval()
    schedule = [[1, 1, 1], [1, 2, 2], [1, 4, 4]]
    with torch.no_grad():
        image = torch.rand(1, 3, 16, 16) * 2 - 1
        code = tokenizer.encode(image, [entry[1:] for entry in schedule])
        tensors = {
            "input.image": image,
            "enc.z": code.latent,
            "dec.recon": tokenizer.decode_pixels(code.latent),
        }
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "tensors.safetensors")
    save_file(tokenizer.state_dict(), folder / "vae.safetensors")
    info = {"official_repo": "FoundationVision/Infinity", "schedule": schedule, "tensors": {}}
    (folder / "case.json").write_text(json.dumps(info))
    return folder


def changed(case, tmp_path, change):
    folder = tmp_path / "changed"
    shutil.copytree(case, folder)
    tensors = load_file(folder / "tensors.safetensors")
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")
    return folder


def test_a_case_that_passes(run, case):
    result = run("conformance", case, "--json")
    assert result.code == 0
    document = result.json
    assert document["passed"] is True and document["uncompared"] == []
    assert set(document["tensors"]) == {"enc.z", "dec.recon"}
    assert document["tensors"]["dec.recon"]["max_abs"] < 1e-4
    told = run("conformance", case)
    assert told.code == 0 and "passed: 2 tensors compared" in told.stdout


def test_one_changed_value_fails(run, case, tmp_path):
    folder = changed(case, tmp_path, lambda tensors: tensors["dec.recon"][0, 0, 0, 0].add_(0.01))
    result = run("conformance", folder, "--json")
    assert result.code == 1 and result.json["passed"] is False
    assert not result.json["tensors"]["dec.recon"]["passed"]
    told = run("conformance", folder)
    assert told.code == 1 and "FAILED" in told.stdout and "dec.recon" in told.stdout


def test_another_shape_is_valid_json(run, case, tmp_path):
    folder = changed(case, tmp_path, lambda tensors: tensors.update({"dec.recon": torch.zeros(2)}))
    result = run("conformance", folder, "--json")
    assert result.code == 1
    entry = result.json["tensors"]["dec.recon"]
    assert entry["max_abs"] is None and "shapes differ" in entry["note"]


def test_an_uncompared_tensor_is_named_and_fails(run, case, tmp_path):
    folder = changed(case, tmp_path, lambda tensors: tensors.update({"unheard.of": torch.zeros(2)}))
    result = run("conformance", folder)
    assert result.code == 1 and "not compared: unheard.of" in result.stdout
    assert run("conformance", folder, "--json").json["uncompared"] == ["unheard.of"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("case.json", b"{"),
        ("case.json", b"[]"),
        ("case.json", b'{"official_repo": "someone/else"}'),
        ("case.json", b'{"official_repo": "FoundationVision/Infinity"}'),
        ("tensors.safetensors", b"nothing"),
        ("vae.safetensors", b"nothing"),
    ],
)
def test_a_folder_that_is_no_case(run, case, tmp_path, name, content):
    folder = changed(case, tmp_path, lambda _tensors: None)
    (folder / name).write_bytes(content)
    result = run("conformance", folder, "--json")
    assert result.code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_no_case_at_all(run):
    result = run("conformance", "nowhere")
    assert result.code == 2 and "nowhere" in result.stderr


def test_converting_what_is_no_checkpoint(run, model_folder, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no weights")
    result = run("convert", text, model_folder / "vae", "new")
    assert result.code == 2 and "not a checkpoint" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_converting_our_own_folders(run, model_folder, tmp_path):
    arguments = ("convert", model_folder / "transformer", model_folder / "vae", "new", "--dtype", "bfloat16")
    result = run(*arguments, "--json")
    assert result.code == 0, result.stderr
    assert result.json["folder"] == "new" and result.json["bytes"] > 0
    refused = run("generate", "a red star", "--model", "new")
    assert refused.code == 2 and "--text-encoder" in refused.stderr
    assert run("summary", "--model", "new", "--json").code == 0
    again = run(*arguments)
    assert again.code == 2 and "exists already" in again.stderr


def test_a_resolution_is_for_models_that_have_one(run, model_folder):
    folders = (model_folder / "transformer", model_folder / "vae")
    result = run("convert", *folders, "new", "--resolution", "720p")
    assert result.code == 2
    assert "is an Infinity transformer, which has no resolution: leave it out" in result.stderr


def test_an_unknown_number_format(run, model_folder):
    folders = (model_folder / "transformer", model_folder / "vae")
    result = run("convert", *folders, "new", "--dtype", "int4")
    assert result.code == 2 and "bfloat16" in result.stderr
