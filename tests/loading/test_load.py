"""`stepvar.load`: folders, repositories of the hub, and official files with what lies beside them."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import stepvar
import tiny_var
from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.common.vq_vae_checkpoints import vae_to_official
from stepvar.models.var.official import to_official

WRAPPERS = {
    "plain": lambda state: state,
    "ddp": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "fsdp": lambda state: {
        key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): value for key, value in state.items()
    },
    "ddp around compiled": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "nested": lambda state: {"model": state, "optimizer": {"state": {}, "lr": 0.1}, "epoch": 3},
    "averaged": lambda state: {
        "model": {key: torch.zeros_like(value) for key, value in state.items()},
        "ema": {f"module.{key}": value for key, value in state.items()},
    },
    "trainer": lambda state: {"trainer": {"var_wo_ddp": state, "optimizer": [1, 2]}, "args": {"depth": 16}},
    "lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
}


@pytest.fixture(scope="module")
def var():
    """A tiny pipeline, and the official state dicts of its parts."""
    transformer = tiny_var.make_var(pixels_per_token=16)
    pipeline = stepvar.VARPipeline(transformer, tiny_var.make_vq_vae(multipliers=(1, 1, 1, 1, 1)))
    transformer = to_official(pipeline.transformer.state_dict(), pipeline.transformer.config)
    vae = vae_to_official(pipeline.vae.state_dict(), pipeline.vae.config)
    return pipeline, transformer, vae


def same_weights(pipeline, other) -> bool:
    return all(
        torch.equal(getattr(pipeline, part).state_dict()[key], value)
        for part in ("transformer", "vae")
        for key, value in getattr(other, part).state_dict().items()
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_official_file_whatever_training_wrapped_around_it(var, tmp_path, wrapper, caplog):
    pipeline, transformer, vae = var
    torch.save(WRAPPERS[wrapper](transformer), tmp_path / "var_d16.pth")
    torch.save(WRAPPERS["ddp"](vae), tmp_path / "vae.pth")
    with caplog.at_level(logging.WARNING, "stepvar"):
        loaded = stepvar.convert(tmp_path / "var_d16.pth", tmp_path / "vae.pth", None, tmp_path / "out")
    # Where the official trainers keep it needs no word.
    if wrapper not in ("plain", "trainer"):
        assert "var_d16.pth" in caplog.text
    stored = load_file(loaded / "transformer" / "diffusion_pytorch_model.safetensors")
    for key, value in pipeline.transformer.state_dict().items():
        assert torch.equal(stored[key], value)


def test_a_file_with_its_tokenizer_beside_it(tmp_path, caplog):
    vae = tiny_var.make_vq_vae(multipliers=(1, 1, 1, 1, 1))
    transformer = tiny_var.make_var(pixels_per_token=16)
    torch.save(to_official(transformer.state_dict(), transformer.config), tmp_path / "var_d16.pth")
    save_file(vae_to_official(vae.state_dict(), vae.config), tmp_path / "vae_ch160v4096z32.safetensors")
    (tmp_path / "notes.txt").write_text("not a model")
    with caplog.at_level(logging.WARNING, "stepvar"):
        loaded = stepvar.load(tmp_path / "var_d16.pth")
    assert "vae_ch160v4096z32.safetensors" in caplog.text
    assert isinstance(loaded, stepvar.VARPipeline)
    for key, value in vae.state_dict().items():
        assert torch.equal(loaded.vae.state_dict()[key], value)
    caplog.clear()
    named = stepvar.load(tmp_path / "var_d16.pth", vae=tmp_path / "vae_ch160v4096z32.safetensors")
    assert not caplog.text
    assert same_weights(named, loaded)
    (tmp_path / "vae_ch160v4096z32.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"draws codes of a visual tokenizer: name that with\s+vae="):
        stepvar.load(tmp_path / "var_d16.pth")
    with pytest.raises(ValueError, match="has no resolution: leave it out"):
        stepvar.load(tmp_path / "var_d16.pth", vae=tmp_path / "elsewhere", resolution="720p")


def test_a_fork_with_other_parameters_is_told_which(var, tmp_path):
    _pipeline, transformer, vae = var
    save_file(vae, tmp_path / "vae.safetensors")
    state = dict(transformer)
    state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "fork.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(extra\.weight\)") as caught:
        stepvar.load(tmp_path / "fork.pth", vae=tmp_path / "vae.safetensors")
    assert "fetch it again" not in str(caught.value)


@pytest.fixture
def hub(tiny_folder, monkeypatch, tmp_path):
    """A hub of one repository, kept in a cache as the real one is."""
    import shutil
    from fnmatch import fnmatch

    asked: list[dict] = []

    def snapshot_download(repository, **options):
        asked.append({"repository": repository, **options})
        if repository != "owner/tiny":
            raise OSError(f"no repository {repository}")
        place = tmp_path / "models--owner--tiny" / "snapshots" / (options["revision"] or "main")
        for file in tiny_folder.rglob("*"):
            name = file.relative_to(tiny_folder).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in options["allow_patterns"]):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place / name)
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_repository_of_the_hub(hub, tiny_folder):
    loaded = stepvar.load("owner/tiny", revision="v1", local_files_only=True)
    assert isinstance(loaded, stepvar.InfinityPipeline)
    assert loaded.origin == "owner/tiny"
    assert hub[0]["revision"] == "v1" and hub[0]["local_files_only"] is True
    # Code and pickles are not even downloaded.
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in hub[0]["allow_patterns"])
    assert same_weights(loaded, stepvar.load(tiny_folder))
    stepvar.InfinityPipeline.from_pretrained("owner/tiny@v2")
    assert hub[-1]["revision"] == "v2"


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(CheckpointError, match="'owner/other' is no folder here, and could not be fetched"):
        stepvar.load("owner/other")
    with pytest.raises(CheckpointError, match="There is no file or folder"):
        stepvar.load("./nowhere/model.pth")


def test_a_variant_of_the_weights(copy):
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        file = copy / part / f"{stem}.safetensors"
        tensors = {key: value.half() for key, value in load_file(file).items()}
        save_file(tensors, copy / part / f"{stem}.fp16.safetensors")
    plain = stepvar.load(copy)
    half = stepvar.load(copy, variant="fp16")
    value = plain.transformer.head.weight
    assert torch.equal(half.transformer.head.weight, value.half().float())
    assert not torch.equal(half.transformer.head.weight, value)
    with pytest.raises(CheckpointError, match="has no variant 'int8'; it has fp16"):
        stepvar.load(copy, variant="int8")


def test_weights_as_pickles_of_tensors(copy, tiny_folder):
    """As older folders have them; nothing but tensors is read from them."""
    for file in copy.rglob("*.safetensors"):
        stem = "pytorch_model" if file.parent.name == "text_encoder" else "diffusion_pytorch_model"
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()
    assert same_weights(stepvar.load(copy), stepvar.load(tiny_folder))


def test_number_formats(tiny_folder):
    assert stepvar.load(tiny_folder).transformer.head.weight.dtype == torch.float32
    kind = stepvar.InfinityPipeline
    mixed = kind.from_pretrained(tiny_folder, dtype={"transformer": torch.bfloat16, "default": torch.float32})
    assert mixed.transformer.blocks[0].feed_forward.up.weight.dtype == torch.bfloat16
    assert mixed.text_encoder.dtype == torch.float32
    assert kind.from_pretrained(tiny_folder, torch_dtype=torch.float16).text_encoder.dtype == torch.float16
    with pytest.raises(ValueError, match="no argument colour"):
        kind.from_pretrained(tiny_folder, colour="red")
    with pytest.raises(CheckpointError, match=r"not VARPipeline; load it with stepvar\.load"):
        stepvar.VARPipeline.from_pretrained(tiny_folder)


def test_components_of_the_caller_are_taken(tiny_folder):
    pipeline = stepvar.load(tiny_folder)
    again = stepvar.InfinityPipeline.from_pretrained(
        tiny_folder, vae=pipeline.vae, text_encoder=None, tokenizer=None, guidance_scale=2.5
    )
    assert again.vae is pipeline.vae and again.text_encoder is None
    assert again.config.guidance_scale == 2.5
