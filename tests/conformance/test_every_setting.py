"""Every tensor that the format names is computed at any setting, also where no golden case lies here."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from stepvar.conformance import run_case
from stepvar.models.infinity.official import to_official
from stepvar.models.infinity.tokenizer import InfinityTokenizer
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
    tokenizer = InfinityTokenizer(14, 24, multipliers, multipliers, patchify=True)
    state = to_official(transformer.state_dict(), transformer.config)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "transformer.safetensors")
    save_file(tokenizer.state_dict(), folder / "vae.safetensors")
    return folder


def write_case(weights, folder, forced: int = 0, **call):
    """A case with a placeholder under every name; forced bits and inputs are real."""
    tensors = {f"text.{name}": torch.zeros(2) for name in TEXT}
    tensors |= {f"s{scale:02}.{name}": torch.zeros(2) for scale in range(4) for name in SCALE}
    tensors |= {f"s{scale:02}.next_input_codes": torch.zeros(2) for scale in range(3)}
    tensors |= {f"final.{name}": torch.zeros(2) for name in FINAL}
    for scale, (height, width) in enumerate(GRIDS[:forced]):
        shape = (2, 1, 2 * height, 2 * width, 14)
        tensors[f"s{scale:02}.bits"] = torch.zeros(shape, dtype=torch.uint8)
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
