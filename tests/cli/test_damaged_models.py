"""Model folders that are missing, damaged, of something else, or not to be trusted."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from pathlib import Path

import pytest

WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
TEXTS = (
    "model_index.json",
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)


@pytest.fixture
def copy(model_folder, tmp_path_factory):
    """A copy of the model folder to damage."""
    folder = tmp_path_factory.mktemp("damaged") / "tiny"
    shutil.copytree(model_folder, folder)
    return folder


def refused(result, *words):
    assert result.code == 2, result.stdout + result.stderr
    assert result.stdout == "" and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def edit(file: Path, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def test_no_folder(run):
    refused(run("generate", "a red star", "--model", "nowhere"), "nowhere", "stepvar convert")


def test_a_file_instead_of_a_folder(run, model_folder):
    refused(run("generate", "a red star", "--model", model_folder / "model_index.json"), "stepvar convert")


def test_a_folder_of_something_else(run, model_folder):
    refused(run("generate", "a red star", "--model", model_folder / "vae"), "model_index.json")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part(run, copy, part):
    shutil.rmtree(copy / part)
    refused(run("generate", "a red star", "--model", copy), part)


@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.7])
def test_truncated_weights(run, copy, file, share):
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: int(share * len(whole))])
    refused(run("generate", "a red star", "--model", copy), "fetch it again")


@pytest.mark.parametrize("file", WEIGHTS)
def test_missing_weights(run, copy, file):
    (copy / file).unlink()
    refused(run("generate", "a red star", "--model", copy), str(copy))


@pytest.mark.parametrize("file", TEXTS)
def test_a_text_file_that_is_none(run, copy, file):
    (copy / file).write_bytes(b"\x00\xff not json")
    refused(run("generate", "a red star", "--model", copy), str(copy))


def test_another_architecture(run, copy):
    shutil.copy(copy / WEIGHTS[1], copy / WEIGHTS[0])
    refused(run("generate", "a red star", "--model", copy), "missing", "unexpected")


def test_another_size(run, copy):
    edit(copy / "transformer/config.json", width=128)
    refused(run("generate", "a red star", "--model", copy), "of another shape")


def test_parts_that_do_not_belong_together(run, copy):
    edit(copy / "transformer/config.json", pixels_per_token=16)
    refused(run("generate", "a red star", "--model", copy), "vae_type")


def test_another_pipeline(run, copy):
    edit(copy / "model_index.json", _class_name="StableDiffusionPipeline")
    refused(run("generate", "a red star", "--model", copy), "StableDiffusionPipeline", "InfinityPipeline")


@pytest.mark.parametrize("library", ["os", "antigravity", "stepvar.models.infinity.nowhere"])
def test_code_that_the_index_names_is_not_run(run, copy, library):
    edit(copy / "model_index.json", vae=[library, "system"])
    refused(run("generate", "a red star", "--model", copy), "vae")


class _Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize("keep_name", [True, False])
def test_executable_weights_are_refused_and_not_run(run, copy, tmp_path, file, keep_name):
    names = {"diffusion_pytorch_model": "diffusion_pytorch_model.bin", "model": "pytorch_model.bin"}
    path = copy / file
    path.unlink()
    path = path if keep_name else path.with_name(names[path.stem])
    path.write_bytes(pickle.dumps({"weight": _Trap()}))
    refused(run("generate", "a red star", "--model", copy))
    assert not list(tmp_path.iterdir())


def damage(random_: random.Random, content: bytes) -> bytes:
    """Cuts, flips, overwrites, or lies about the length of the header."""
    changed = bytearray(content)
    how = random_.choice(("cut", "flip", "flip header", "overwrite", "length"))
    if how == "cut":
        return content[: random_.randrange(len(content))]
    if how == "length":
        changed[:8] = struct.pack("<Q", random_.choice((0, 1, 2**20, 2**40, 2**63)))
    for _ in range(random_.choice((1, 3, 20))):
        reach = min(len(content), 2000) if how != "flip" else len(content)
        place = random_.randrange(reach)
        if how in ("flip", "flip header"):
            changed[place] ^= 1 << random_.randrange(8)
        elif how == "overwrite":
            changed[place] = random_.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_gives_a_sentence_or_a_picture(run, copy, seed):
    random_ = random.Random(seed)
    path = copy / (WEIGHTS[seed % 3] if seed < 24 else random_.choice(TEXTS))
    path.write_bytes(damage(random_, path.read_bytes()))
    result = run("generate", "a red star", "--model", copy, "--seed", "1")
    assert result.code in (0, 2), result.stderr
    assert "Traceback" not in result.stderr
