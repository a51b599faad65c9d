"""Every tensor that the format names is computed at any setting, also where no golden case lies here."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.conformance import run_case
from stepvar.models.infinity.official import to_official
from stepvar.models.infinity.vae import InfinityVAE
from tiny_models import make_text, make_transformer

TEXT = ("kv_after_text_norm", "cond_BD", "kv_for_ca", "shared_gss")
SCALE = (
    "block0_input",
    "block0_sa_out",
    "block0_ca_out",
    "block0_ffn_out",
    "block0_output",
    "block1_output",
    "last_block_output",
    "head_out",
    "logits",
    "bits",
    "summed_codes",
)
FINAL = ("summed_codes", "decoded", "decoded_crop", "decoded_avgpool8", "image_uint8_bgr")
GRIDS = [(1, 1), (2, 2), (2, 6), (3, 9)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Official-looking weights of a tiny model whose tokens hold 2 x 2 latent positions, as the 8B's do."""
    folder = tmp_path_factory.mktemp("patchify")
    transformer = make_transformer(bits=56, depth=2, width=128, heads=4, block_chunks=2)
    multipliers = (1, 1, 1, 2)
    tokenizer = InfinityVAE(14, 24, multipliers, multipliers, patchify=True)
    state = to_official(transformer.state_dict(), transformer.config)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "transformer.safetensors")
    save_file(tokenizer.state_dict(), folder / "vae.safetensors")
    return folder


def write_case(weights, folder, forced: int = 0, given: bool = False, **call):
    """A case with a placeholder under every name; forced bits and inputs are real.

    Args:
        forced: Scales whose bits are given.
        given: Whether they are stored as inputs of their own.
    """
    tensors = {f"text.{name}": torch.zeros(2) for name in TEXT}
    tensors |= {f"s{scale:02}.{name}": torch.zeros(2) for scale in range(4) for name in SCALE}
    tensors |= {f"s{scale:02}.next_input_codes": torch.zeros(2) for scale in range(3)}
    tensors |= {f"final.{name}": torch.zeros(2) for name in FINAL}
    for scale, (height, width) in enumerate(GRIDS[:forced]):
        shape = (2, 1, 2 * height, 2 * width, 14)
        name = f"input.gt_ls_Bl.{scale}" if given else f"s{scale:02}.bits"
        tensors[name] = torch.zeros(shape, dtype=torch.uint8)
    tensors["input.kv_compact"] = torch.cat(make_text(3, 5))
    settings = {
        "B": 2,
        "lens": [3, 5],
        "scale_schedule": [[1, height, width] for height, width in GRIDS],
        "pn": "0.06M",
        "h_div_w_template": 0.333,
        "cfg_list": [3.0] * 4,
        "tau_list": [1.0] * 4,
        "top_k": 900,
        "top_p": 0.97,
        "cfg_insertion_layer": [0],
        "vae_type": 14,
        "gt_leak": forced,
        "g_seed": 0,
        **call,
    }
    described = {"official_repo": "FoundationVision/Infinity", "weights": str(weights), "call": settings}
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "case.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"cfg_list": [1.0] * 4},
        {"cfg_list": [1.0, 3.0, 1.0, 1.0, 5.0], "tau_list": 0.7},
        {"cfg_insertion_layer": [-1], "g_seed": 7},
        {"cfg_insertion_layer": [0, -1], "top_k": 1, "top_p": 0.0},
        {"forced": 2},
    ],
)
def test_every_name_of_the_format_is_computed(weights, tmp_path, call):
    report = run_case(write_case(weights, tmp_path, **call))
    assert report.uncompared == []
    forced = [f"s{scale:02}.bits" for scale in range(call.get("forced", 0))]
    assert report.inputs == ["input.kv_compact", *forced]
    assert not report.passed, "placeholders are not what the model computes"
    latent = report.tensors["final.summed_codes"].note
    assert "computed [2, 14, 6, 18]" in latent
    assert "computed [2, 3, 48, 144]" in report.tensors["final.decoded"].note
    assert "computed [2, 48, 144, 3]" in report.tensors["final.image_uint8_bgr"].note
    rows = 4 if max(call.get("cfg_list", [3.0])) > 1 else 2
    assert f"computed [{rows}, 27, 128]" in report.tensors["s03.last_block_output"].note


def test_bits_that_are_stored_as_inputs_are_what_the_model_goes_on_with(weights, tmp_path):
    own = run_case(write_case(weights, tmp_path, forced=2))
    given = run_case(write_case(weights, tmp_path, forced=2, given=True))
    assert given.inputs == ["input.kv_compact", "input.gt_ls_Bl.0", "input.gt_ls_Bl.1"]
    assert given.uncompared == []
    assert "s01.bits" in given.tensors and "s01.bits" not in own.tensors


def test_without_a_seed_random_bits_are_inputs(weights, tmp_path):
    def draw(**call):
        return run_case(write_case(weights, tmp_path, forced=4, gt_leak=0, **call))

    bits = {f"s{scale:02}.bits" for scale in range(4)}
    assert bits <= set(draw(top_k=0, g_seed=None).inputs)
    assert bits <= draw(top_k=1, g_seed=None).tensors.keys(), "the likelier bit needs no seed"
    assert bits <= draw(top_k=0, g_seed=3).tensors.keys()


def test_a_generation_may_stop_before_its_last_scales(weights, tmp_path):
    folder = write_case(weights, tmp_path, top_k=1, trunk_scale=2)
    report = run_case(folder)
    late = {f"s{scale:02}.{name}" for scale in (2, 3) for name in SCALE}
    assert late <= set(report.uncompared)
    assert "s01.next_input_codes" in report.tensors and "final.decoded" in report.tensors


def test_weights_of_eight_bits_are_run_exactly(weights, tmp_path):
    for name in ("transformer", "vae"):
        state = load_file(weights / f"{name}.safetensors")
        eighth = {key: value.to(torch.float8_e4m3fn) for key, value in state.items()}
        for folder, stored in (("eight", eighth), ("whole", {key: eighth[key].float() for key in eighth})):
            (tmp_path / folder).mkdir(exist_ok=True)
            save_file(stored, tmp_path / folder / f"{name}.safetensors")
    first = run_case(write_case(tmp_path / "eight", tmp_path, top_k=1))
    tensors = load_file(tmp_path / "tensors.safetensors")
    again = run_case(write_case(tmp_path / "whole", tmp_path, top_k=1))
    assert tensors.keys() == {*first.tensors, *first.inputs}
    assert first.as_json()["tensors"] == again.as_json()["tensors"]
