"""VAR's visual tokenizer: against what the official code computed, its layouts and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.common.vq_vae_checkpoints import (
    STATISTICS,
    infer_vae_config,
    load_vq_vae,
    vae_from_official,
    vae_from_state,
    vae_to_official,
)
from stepvar.models.var.vae import VARVAE

GOLDEN = Path(__file__).parents[2] / "golden" / "var"


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in load_file(GOLDEN / "vqvae" / "weights.safetensors").items()}


@pytest.fixture(scope="module")
def tokenizer(official) -> VARVAE:
    return vae_from_state(VARVAE, official).requires_grad_(False)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vqvae" / "tensors.safetensors")


def test_the_published_layout_maps_both_ways():
    layout = json.loads((GOLDEN / "layout_vae_256.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in layout["state_dict"].items()}
    config = infer_vae_config(state, "the layout")
    with torch.device("meta"):
        model = VARVAE(**config)
        default = VARVAE()
    assert list(default.config.multipliers) == config["multipliers"]
    assert all(default.config[key] == config[key] for key in config if key != "multipliers")
    assert sum(parameter.numel() for parameter in model.parameters()) == layout["parameters"]
    ours = vae_from_official(state, config)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    back = vae_to_official(ours, config)
    assert back.keys() == state.keys() - {STATISTICS}
    assert all(back[key] is state[key] for key in back)


def test_a_picture_survives_encoding_and_decoding_as_in_the_official_code(tokenizer, golden):
    grids = [(side, side) for side in (1, 1, 2, 2, 3, 3, 4, 4, 5, 6)]
    code = tokenizer.encode(golden["image_in"].float(), grids)
    torch.testing.assert_close(code.latent, golden["f_hat.09"], rtol=0, atol=1e-4)
    torch.testing.assert_close(tokenizer.decode_pixels(code.latent), golden["recon"], rtol=0, atol=1e-4)
    coarse = tokenizer.decode_index([index[:1] for index in code.index[:4]], grids)
    torch.testing.assert_close(coarse, golden["recon_scale3"], rtol=0, atol=1e-4)


def test_a_saved_tokenizer_comes_back(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_vq_vae(VARVAE, tmp_path)
    assert again.config.items() >= {"codes": 128, "channels": 16}.items()
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_an_official_file_loads_with_any_number_format(official, tokenizer, tmp_path, prefix):
    stored = {prefix + key: value.half() for key, value in official.items()}
    if prefix:
        stored["disc.main.0.weight"] = torch.zeros(2)
    save_file(stored, tmp_path / "vae.safetensors")
    loaded = load_vq_vae(VARVAE, tmp_path / "vae.safetensors", torch.bfloat16, prefix=prefix)
    assert loaded.quantizer.codebook.weight.dtype == torch.float32
    assert loaded.decoder.conv_out.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.quantizer.codebook.weight, tokenizer.quantizer.codebook.weight)


def test_missing_and_unexpected_keys_are_named(official, tmp_path):
    damaged = {key: value for key, value in official.items() if key != "quant_conv.bias"}
    damaged["quant_conv.gain"] = torch.zeros(1)
    save_file(damaged, tmp_path / "vae.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(quant_conv.bias\); 1 unexpected \(quant_conv.gain\)"
    ):
        load_vq_vae(VARVAE, tmp_path / "vae.safetensors")


def test_another_file_is_called_by_its_name(tmp_path):
    keys = ("word_embed.weight", "class_emb.weight")
    save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / "var.safetensors")
    with pytest.raises(CheckpointError, match="is a VAR transformer, not a visual tokenizer with a codebook"):
        load_vq_vae(VARVAE, tmp_path / "var.safetensors")


@pytest.mark.parametrize("shape", [(1, 3, 40, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_a_picture_of_another_shape_is_refused(tokenizer, shape):
    with pytest.raises(ValueError, match=r"must be"):
        tokenizer.encode_features(torch.zeros(shape))


def test_nothing_to_decode_is_refused(tokenizer):
    with pytest.raises(ValueError, match="at least one scale"):
        tokenizer.decode_index([], [(1, 1)])
