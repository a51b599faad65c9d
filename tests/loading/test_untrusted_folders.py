"""Folders that would run code, reach outside themselves, or cost more than they hold are refused."""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stepvar
from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.weights import Checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"


def refusal(folder: Path, *words: str) -> str:
    """The sentence with which a folder is refused, by the opener and by its pipeline alike."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    messages = []
    for opener in (stepvar.load, stepvar.InfinityPipeline.from_pretrained):
        with pytest.raises(CheckpointError) as caught:
            opener(folder)
        messages.append(str(caught.value))
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    for message in messages:
        assert "\n" not in message and message.endswith("."), message
        for word in words:
            assert word in message, message
    return messages[0]


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "tokenizer"])
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("stepvar.loading.conversion", "convert"),
        ("stepvar.models.registry", "import_module"),
        ("stepvar.checkpoints.components", "load_reference"),
        ("stepvar", "StepVAR"),
        ("os", "system"),
        ("payload", "Payload"),
        ("transformers", "BertModel"),
        ("transformers", "pipeline"),
        ("diffusers", "DiffusionPipeline"),
    ],
)
def test_classes_outside_the_table_are_not_even_imported(copy, edit, part, library, name, monkeypatch):
    # A module of the attacker's beside the folder, as when a program is started in it.
    (copy / "payload.py").write_text("raise SystemExit('payload ran')")
    monkeypatch.syspath_prepend(str(copy))
    edit(copy / "model_index.json", **{part: [library, name]})
    edit(copy / "vae/config.json", _class_name=name, name="payload")
    refusal(copy, part)
    assert "payload" not in sys.modules


@pytest.mark.parametrize("name", ["StepVAR", "convert", "DiffusionPipeline", ["payload", "Payload"], None, 3])
def test_pipelines_outside_the_list(copy, edit, name):
    (copy / "payload.py").write_text("raise SystemExit('payload ran')")
    edit(copy / "model_index.json", _class_name=name)
    refusal(copy, "holds a")


CODE = {
    "text_encoder/config.json": {
        "auto_map": {"AutoModel": "payload.Payload", "AutoConfig": "payload.Config"}
    },
    "tokenizer/tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["payload.Payload", None]}},
}


@pytest.mark.parametrize("file", CODE)
def test_code_of_a_transformers_folder_is_neither_run_nor_asked_about(copy, edit, file, capsys, monkeypatch):
    (copy / file).with_name("payload.py").write_text("raise SystemExit('payload ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    edit(copy / file, **CODE[file])
    refusal(copy, "auto_map")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("text_encoder/config.json", {"transformers_weights": "../../secret.safetensors"}),
        ("text_encoder/config.json", {"configuration_files": ["../../config.4.0.0.json"]}),
        ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_file": "../secret.json"}),
        ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]}),
        ("tokenizer/tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}),
    ],
)
def test_fields_that_name_other_files_or_code(copy, edit, file, fields):
    edit(copy / file, **fields)
    refusal(copy)


def test_tokens_that_name_a_file(copy):
    (copy / "tokenizer/special_tokens_map.json").write_text(json.dumps({"vocab_file": "/etc/passwd"}))
    refusal(copy, "/etc/passwd")


def test_an_implementation_from_the_hub_is_not_fetched(copy, edit, monkeypatch):
    import huggingface_hub

    def fetched(*_arguments: object, **_options: object) -> None:
        pytest.fail("asked the hub")

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, fetched)
    names = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    for name in (*names, "experts_implementation"):
        edit(copy / "text_encoder/config.json", **{name: "somebody/kernels"})
    stepvar.load(copy)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_an_index_of_any_part_that_leads_outside(copy, part, name):
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    file = copy / part / f"{stem}.safetensors"
    save_file(load_file(file), copy.parent / "secret.safetensors")
    names = dict.fromkeys(load_file(file), name)
    file.unlink()
    file.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    refusal(copy, "points outside its folder")


@pytest.mark.parametrize(
    "file",
    [
        f"transformer/{WEIGHTS}",
        "vae/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_links_that_leave_the_folder(copy, file):
    outside = (copy / file).rename(copy.parent / "outside")
    (copy / file).symlink_to(outside)
    refusal(copy, "is a link to a place outside its folder")


def test_a_part_that_is_a_link(copy):
    outside = (copy / "vae").rename(copy.parent / "outside")
    (copy / "vae").symlink_to(outside, target_is_directory=True)
    refusal(copy, "is a link to a place outside its folder")


def test_links_within_a_folder_and_a_hub_cache_are_followed(copy, tmp_path):
    store = copy / "vae" / "store"
    store.mkdir()
    (copy / "vae" / WEIGHTS).rename(store / "blob")
    (copy / "vae" / WEIGHTS).symlink_to(Path("store") / "blob")
    stepvar.load(copy)
    repository = tmp_path / "models--owner--name"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot = copy.rename(repository / "snapshots" / "abc")
    weights = snapshot / "transformer" / WEIGHTS
    weights.rename(repository / "blobs" / "123")
    weights.symlink_to(repository / "blobs" / "123")
    stepvar.load(snapshot)


def test_a_pipe_instead_of_weights(copy):
    (copy / "vae" / WEIGHTS).unlink()
    os.mkfifo(copy / "vae" / WEIGHTS)
    refusal(copy, "regular file")


HUGE = [
    ("transformer/config.json", {"depth": 10**9}),
    ("transformer/config.json", {"grids": [[1, 1]] * 1_000_000}),
    ("transformer/config.json", {"grids": [[10**9, 10**9]]}),
    ("transformer/config.json", {"width": 10**9}),
    ("transformer/config.json", {"levels": 10**12}),
    ("transformer/config.json", {"text_length": 10**9}),
    ("vae/config.json", {"encoder_blocks": 10**9}),
    ("vae/config.json", {"decoder_multipliers": [1] * 100_000}),
    ("vae/config.json", {"decoder_multipliers": [10**9, 1, 1]}),
    ("vae/config.json", {"stride": 0}),
    ("vae/config.json", {"codebook_dim": 10**9}),
    ("text_encoder/config.json", {"num_layers": 10**9}),
    ("text_encoder/config.json", {"num_decoder_layers": 10**9, "d_ff": 10**9}),
    ("text_encoder/config.json", {"vocab_size": 10**9}),
    ("text_encoder/config.json", {"d_model": 10**6}),
    ("text_encoder/config.json", {"num_heads": 10**6}),
    ("text_encoder/config.json", {"relative_attention_num_buckets": 10**9}),
]


@pytest.mark.parametrize(("file", "fields"), HUGE)
def test_configurations_that_promise_more_than_the_weights(copy, edit, file, fields):
    edit(copy / file, **fields)
    refusal(copy)


def test_labels_of_a_text_encoder_cost_nothing(copy, edit):
    edit(copy / "text_encoder/config.json", num_labels=10**9)
    stepvar.load(copy)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model_index.json", '"guidance_scale": NaN'),
        ("model_index.json", '"guidance_scale": Infinity'),
        ("model_index.json", '"temperature": 1e999'),
        ("model_index.json", '"temperature": 1e-42'),
        ("model_index.json", '"guidance_scale": "three"'),
        ("model_index.json", '"guidance_scale": 1e30'),
        ("text_encoder/config.json", '"layer_norm_epsilon": NaN'),
    ],
)
def test_settings_that_are_not_finite_are_named(copy, file, text):
    content = json.loads((copy / file).read_text())
    name = text.split('"')[1]
    content.pop(name, None)
    (copy / file).write_text(json.dumps(content)[:-1] + f", {text}}}")
    refusal(copy, name)


@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json", "text_encoder/config.json"])
def test_a_key_that_is_there_twice(copy, file):
    text = (copy / file).read_text().rstrip()
    key = next(iter(json.loads(text)))
    (copy / file).write_text(f"{text[:-1]}, {json.dumps(key)}: 1}}")
    refusal(copy, key, "twice")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_not_finite_are_named(copy, part, value):
    file = next((copy / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(key for key, tensor in tensors.items() if tensor.numel() > 4)[-1]
    tensors[name].view(-1)[3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    refusal(copy, name)


def test_a_text_encoder_without_its_weights(copy):
    file = copy / "text_encoder/model.safetensors"
    save_file({"other": torch.zeros(2)}, file, metadata={"format": "pt"})
    refusal(copy, "text encoder")


def test_two_threads_load_at_once(tiny_folder):
    found: list[object] = []

    def load() -> None:
        try:
            found.append(stepvar.load(tiny_folder))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(pipeline, stepvar.InfinityPipeline) for pipeline in found), found
    for pipeline in found:
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            assert not any(value.is_meta for value in part.state_dict().values())
    assert torch.zeros(1).device.type == "cpu" and torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_a_file_that_is_written_over_does_not_change_what_was_loaded(copy):
    pipeline = stepvar.load(copy)
    before = {key: value.clone() for key, value in pipeline.transformer.state_dict().items()}
    file = copy / "transformer" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-4096:] = bytes(4096)
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate(len(content) // 2)
    for key, value in pipeline.transformer.state_dict().items():
        assert torch.equal(value, before[key])


class TestArchives:
    """PyTorch files whose sizes are lies."""

    def write(self, file: Path, compression: int, pickled: bytes) -> None:
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")

    def test_compressed_members(self, tmp_path):
        bomb = pickle.dumps({"weight": "x" * (200 << 20)}, protocol=2)
        self.write(tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED, bomb)
        assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError, match="compressed archive"):
            Checkpoint.open(tmp_path / "bomb.pth")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000

    def test_an_allocation_that_the_pickle_asks_for(self, tmp_path):
        # bytearray(10 ** 10), which torch allows.
        pickled = (
            b"\x80\x02}q\x00X\x06\x00\x00\x00weightc__builtin__\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85Rs."
        )
        self.write(tmp_path / "greedy.pth", zipfile.ZIP_STORED, pickled)
        with pytest.raises(CheckpointError, match=r"bytearray.* not executed"):
            Checkpoint.open(tmp_path / "greedy.pth")

    @pytest.mark.parametrize("legacy", [False, True])
    def test_tensors_that_share_what_little_there_is(self, tmp_path, legacy):
        little = torch.zeros(1)
        tensors = {f"weight{number}": little.expand(10_000, 10_000) for number in range(3)}
        torch.save(tensors, tmp_path / "wide.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match="share memory"):
            Checkpoint.open(tmp_path / "wide.pth")

    def test_members_that_overlap(self, tmp_path):
        file = tmp_path / "overlapping.pth"
        torch.save({"weight": torch.zeros(1000)}, file)
        content = file.read_bytes()
        with zipfile.ZipFile(file) as archive:
            member = max(archive.infolist(), key=lambda entry: entry.file_size)
        size = member.file_size.to_bytes(4, "little")
        place = content.rindex(member.filename.encode()) - 46
        larger = (member.file_size * 1000).to_bytes(4, "little")
        assert content[place + 20 : place + 24] == size
        file.write_bytes(content[: place + 20] + larger + larger + content[place + 28 :])
        with pytest.raises(CheckpointError):
            Checkpoint.open(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("safety_checker", ["transformers", "CLIPModel"]),
        ("transformer_2", ["stepvar", "InfinityTransformer"]),
        ("guidance_scal", 5.0),
        ("temprature", [0.5, 1.0]),
        ("scheduler", None),
        ("feature_extractor", [None, None]),
    ],
)
def test_entries_that_would_have_no_effect(copy, edit, key, value):
    edit(copy / "model_index.json", **{key: value})
    if value in (None, [None, None]):
        stepvar.load(copy)
    else:
        refusal(copy, key, "no such part")


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_unknown_fields_of_a_part(copy, edit, part):
    edit(copy / part / "config.json", use_flash=True)
    refusal(copy, "use_flash")
