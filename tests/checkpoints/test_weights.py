"""Reading weight files: what is refused, in which words, and that nothing in a file is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.layouts import copy_finite
from stepvar.checkpoints.weights import Checkpoint, read_tensors, weight_files
from stepvar.models.common.architectures import name_architecture


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def refusal(path: Path) -> str:
    """The one sentence with which a path is refused."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def write_index(folder: Path, weight_map: object, name: str = "model.safetensors.index.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_missing_file(tmp_path):
    assert "There is no file or folder" in refusal(tmp_path / "none.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickle_is_not_executed(tmp_path, legacy):
    file, target = tmp_path / "evil.pth", tmp_path / "created"
    torch.save(
        {"weight": torch.ones(1), "payload": Malicious(target)},
        file,
        _use_new_zipfile_serialization=not legacy,
    )
    message = refusal(file)
    assert "not executed" in message
    assert "mkdir" in message
    assert not target.exists()


def test_bare_malicious_pickle_is_not_executed(tmp_path):
    file, target = tmp_path / "evil.bin", tmp_path / "created"
    file.write_bytes(pickle.dumps(Malicious(target), protocol=2))
    assert "not executed" in refusal(file)
    # Protocol 0 is plain text, the oldest form of the same attack.
    file.write_bytes(pickle.dumps(Malicious(target), protocol=0))
    assert "is not a checkpoint" in refusal(file)
    assert not target.exists()


def test_malicious_shard_is_not_executed(tmp_path):
    folder, target = write_index(tmp_path / "shards", {"weight": "shard.bin"}), tmp_path / "created"
    torch.save({"weight": Malicious(target)}, folder / "shard.bin")
    with pytest.raises(CheckpointError, match="not executed"):
        Checkpoint.open(folder)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.pth", b"", "is empty"),
        ("empty.safetensors", b"", "is empty"),
        ("text.pth", b"just some text, nothing else", "is not a checkpoint"),
        ("text.safetensors", b"just some text, nothing else", "truncated or damaged"),
        ("pointer.pth", b"version https://git-lfs and so on", "Git LFS pointer"),
        ("pointer.safetensors", b"version https://git-lfs and so on", "Git LFS pointer"),
        ("page.pth", b"\n<!DOCTYPE html><html>", "web page"),
        ("model.gguf", b"GGUF\x03\x00\x00\x00", "GGUF"),
        ("noise.bin", b"\x80\x02" + bytes(range(100)), "is not a checkpoint"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["cut.pth", "cut_legacy.pth", "cut.safetensors"])
def test_truncated_files(tmp_path, name):
    file = tmp_path / name
    if file.suffix == ".safetensors":
        save_file({"weight": torch.ones(1000)}, file)
    else:
        torch.save({"weight": torch.ones(1000)}, file, _use_new_zipfile_serialization="legacy" not in name)
    complete = file.read_bytes()
    for size in (len(complete) - 10, len(complete) // 2):
        file.write_bytes(complete[:size])
        assert "truncated or damaged" in refusal(file)


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("photo.txt", "hello")
    assert "is not a checkpoint" in refusal(tmp_path / "photos.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({}, "holds no tensors"),
        ({"epoch": 3, "weight": torch.ones(1)}, "epoch is no named tensor"),
        ({3: torch.ones(1)}, "3 is no named tensor"),
        ({"weight": torch.eye(3).to_sparse()}, "weight is no named tensor"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "file.pth")
    assert words in refusal(tmp_path / "file.pth")


def test_folders_without_usable_weights(tmp_path):
    assert "contains no weights" in refusal(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    assert "give one of its folders vae" in refusal(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({"weight": torch.ones(1)}, tmp_path / name)
    assert "a.pth, b.pth but no shard index" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "..", "a\\b.bin", "", "C:x", "sub/a.bin"])
def test_an_index_cannot_point_outside_its_folder(tmp_path, name):
    torch.save({"weight": torch.ones(1)}, tmp_path / "secret.bin")
    folder = write_index(tmp_path / "shards", {"weight": name})
    with pytest.raises(CheckpointError, match="points outside its folder"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("weight_map", [None, [], {"weight": 3}, {"weight": ["a.bin"]}])
def test_unreadable_index(tmp_path, weight_map):
    with pytest.raises(CheckpointError, match="not a readable shard index"):
        Checkpoint.open(write_index(tmp_path / "shards", weight_map))


def test_missing_doubled_and_empty_shards(tmp_path):
    folder = write_index(tmp_path / "shards", {"a": "a.safetensors", "b": "b.safetensors"})
    save_file({"a": torch.ones(1)}, folder / "a.safetensors")
    assert "lacks 1 of its 2 shards (b.safetensors)" in refusal(folder)
    save_file({"a": torch.ones(1)}, folder / "b.safetensors")
    assert "stores a in two shards" in refusal(folder)
    with pytest.raises(CheckpointError, match="lists no shards"):
        Checkpoint.open(write_index(tmp_path / "none", {}))


def test_safetensors_are_preferred_and_recognised_by_content(tmp_path):
    tensors = {"weight": torch.randn(3)}
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    save_file(tensors, tmp_path / "model.safetensors")
    (shard,) = Checkpoint.open(tmp_path).shards()
    assert torch.equal(shard["weight"], tensors["weight"])
    renamed = (tmp_path / "model.safetensors").rename(tmp_path / "model.pth")
    assert torch.equal(read_tensors(renamed)["weight"], tensors["weight"])


@pytest.mark.parametrize("length", range(1, 70))
def test_a_safetensors_header_of_any_length_is_no_web_page(tmp_path, length):
    # The first byte of the file is the length of its header, and 60 is the code of "<".
    save_file({"w" * length: torch.ones(1)}, tmp_path / "file.pth")
    assert list(read_tensors(tmp_path / "file.pth")) == ["w" * length]


def test_routes_lead_to_the_nested_state_dict(tmp_path):
    state = {"weight": torch.ones(2)}
    torch.save({"args": {"lr": 1.0}, "trainer": {"empty": None, "model": state}}, tmp_path / "training.pth")
    routes = [("trainer", "empty"), ("trainer", "model")]
    checkpoint = Checkpoint.open(tmp_path / "training.pth", routes)
    assert checkpoint.layout["weight"].is_meta
    assert torch.equal(next(checkpoint.shards())["weight"], state["weight"])


def test_architectures_are_named():
    assert name_architecture(["word_embed.weight", "class_emb.weight", "pos_1LC"]) == "a VAR transformer"
    assert name_architecture(["word_embed.weight", "context_embed.weight"]) == "a HART transformer"
    assert name_architecture(["something.else"]) is None


def test_averaged_weights_beside_plain_ones_are_left_to_those_who_name_them(tmp_path):
    for name in ("ema_model.bin", "pytorch_model.bin"):
        torch.save({"weight": torch.ones(1)}, tmp_path / name)
    assert weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    (tmp_path / "pytorch_model.bin").unlink()
    assert weight_files(tmp_path) == [tmp_path / "ema_model.bin"]


def test_a_name_that_a_header_has_twice_is_refused(tmp_path):
    entry = b'"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = b"{" + entry + b", " + entry + b"}"
    (tmp_path / "twice.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="a name is there twice"):
        Checkpoint.open(tmp_path / "twice.safetensors")
    save_file({'"data_offsets"': torch.zeros(1)}, tmp_path / "odd.safetensors", {"data_offsets": "x"})
    assert len(Checkpoint.open(tmp_path / "odd.safetensors").layout) == 1


FORMATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", FORMATS)
def test_one_value_in_a_million_that_is_not_finite_is_found(dtype):
    weights = torch.zeros(1_200, 1_000, dtype=dtype)
    for place in (0, 262_143, 262_144, -1):  # the ends of what is looked at together
        for value in (float("nan"), float("inf"), -float("inf")):
            weights.view(-1)[place] = value
            for target, copy in ((None, True), (None, False), (torch.float32, True), (torch.float16, True)):
                with pytest.raises(CheckpointError, match=r"weight w is (NaN|infinite) in places"):
                    copy_finite(weights, target, "w", copy)
        weights.view(-1)[place] = 0.0


@pytest.mark.parametrize("dtype", FORMATS)
def test_copies_are_equal_and_large_numbers_are_finite(dtype):
    # The sum overflows in all formats, and no term does.
    weights = torch.full((1_200, 1_000), torch.finfo(dtype).max, dtype=dtype)
    copied = copy_finite(weights, None, "w")
    assert torch.equal(copied, weights) and copied.data_ptr() != weights.data_ptr()
    assert copied.data_ptr() % 64 == 0 and copied.untyped_storage().nbytes() == weights.nbytes
    assert copy_finite(weights, None, "w", copy=False) is weights


def test_numbers_beyond_another_format_are_named():
    with pytest.raises(CheckpointError, match="weight w is infinite"):
        copy_finite(torch.full((4,), 1e30), torch.float16, "w")


def test_quantised_weights_are_named_and_whole_numbers_copied():
    with pytest.raises(CheckpointError, match="w is float8_e4m3fn, a number format that cannot be used"):
        copy_finite(torch.zeros(4, dtype=torch.float8_e4m3fn), None, "w")
    for dtype in (torch.int64, torch.int8, torch.bool):
        assert torch.equal(copy_finite(torch.ones(4, dtype=dtype), None, "w"), torch.ones(4, dtype=dtype))
