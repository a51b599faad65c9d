"""The tokenizer against the official code's numbers, key layouts and its own inverse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepvar.models.common.resizing import resize_area
from stepvar.models.infinity.quantizer import (
    latent_bits_from_tokens,
    latent_from_bits,
    quantize_multiscale,
    tokens_from_latent_bits,
)
from stepvar.models.infinity.vae import InfinityVAE, convert_official_state, official_key

GOLDEN = Path(__file__).parents[2] / "golden" / "infinity"
LAYOUTS = sorted(GOLDEN.glob("layout_vae_*.json"))
ACTIVATION, PIXEL = 1e-5, 5e-5


def tokenizer_of(case: dict) -> InfinityVAE:
    """The tokenizer of a golden weight folder's ``vae`` entry, with its weights."""
    folder = GOLDEN / Path(case["weights"].split()[0]).parent.name
    arguments = json.loads((folder / "case.json").read_text())["vae"]["full_args"]
    model = InfinityVAE(
        codebook_dim=arguments["codebook_dim"],
        base_channels=arguments["base_ch"],
        encoder_multipliers=arguments["encoder_ch_mult"],
        decoder_multipliers=arguments["decoder_ch_mult"],
        encoder_blocks=arguments["num_res_blocks"],
        decoder_blocks=arguments["num_res_blocks"] + 1,
        stride=arguments["patch_size"],
    )
    model.load_official(load_file(folder / "vae.safetensors"))
    return model.float().eval()


def hook_activations(model: InfinityVAE) -> dict[str, torch.Tensor]:
    """Collect activations under the names the golden data gives them."""
    found: dict[str, torch.Tensor] = {}

    def keep(name, module):
        def hook(_, __, output):
            # A value returned from a hook would replace the output; only the first call is of interest.
            found.setdefault(name, output)

        module.register_forward_hook(hook)

    for side, levels in (("encoder", model.encoder.down), ("decoder", model.decoder.up)):
        prefix, step, resample = (
            ("enc.", "down", "downsample") if side == "encoder" else ("dec.", "up", "upsample")
        )
        keep(f"{prefix}{side}_conv_in", getattr(model, side).conv_in)
        keep(f"{prefix}{side}_mid", getattr(model, side).mid.block_2)
        for index, level in enumerate(levels):
            keep(f"{prefix}{side}_{step}{index}_last_block", level.block[-1])
            if getattr(level, resample) is not None:
                keep(f"{prefix}{side}_{step}{index}_{resample}", getattr(level, resample))
    return found


def computed_tensors(model: InfinityVAE, case: dict, stored: dict) -> dict[str, torch.Tensor]:
    """Everything the case stores, computed by this library."""
    found = hook_activations(model)
    grids = [tuple(entry[-2:]) for entry in case["schedule"]]
    with torch.no_grad():
        features = model.encode_features(stored["input.image"])
        code = quantize_multiscale(features, grids)
        result = {"enc.h": features, "enc.z": code.latent, "dec.recon": model.decode_pixels(code.latent)}
        result["dec.from_bits_summed_codes"] = latent_from_bits(code.bits, grids[-1])[:, :, None]
        rows_columns = re.search(
            r"\[\.\.\., (\d*):(\d*), (\d*):(\d*)\]",
            case["tensors"].get("dec.from_bits_recon", {}).get("meaning", ""),
        )
        if rows_columns:
            top, bottom, left, right = (int(text) if text else None for text in rows_columns.groups())
            picture = model.decode_pixels(latent_from_bits(code.bits, grids[-1]))
            result["dec.from_bits_recon"] = picture[..., top:bottom, left:right]
        result["dec2.recon"] = model.decode_pixels(stored["dec2.z"])
    for index, bits in enumerate(code.bits):
        result[f"enc.bits{index}"] = bits[:, None].to(torch.uint8)
        result[f"enc.residual{index}"] = code.residuals[index][:, :, None]
    for index, latent in enumerate(code.area_inputs):
        result[f"enc.var_input{index}"] = latent[:, :, None]
    return result | found


def differing_tensors(case: dict, stored: dict, computed: dict) -> list[str]:
    """Names of stored tensors that were not computed or lie outside the tolerance."""
    failures = []
    for name, expected in stored.items():
        if name in ("input.image", "dec2.z"):
            continue
        if name not in computed:
            failures.append(f"{name}: not computed")
            continue
        actual = computed[name]
        sampled = re.search(r"then every (\d+)th element", case["tensors"][name]["meaning"])
        if sampled:
            actual = actual.flatten()[:: int(sampled.group(1))]
        if "bits" in name and expected.dtype == torch.uint8:
            close = torch.equal(actual, expected)
        else:
            limit = PIXEL if name.endswith("recon") else ACTIVATION * expected.abs().max()
            close = actual.shape == expected.shape and (actual - expected).abs().max() <= limit
        if not close:
            failures.append(name)
    return failures


@pytest.fixture(scope="module")
def golden():
    folder = GOLDEN / "vae_d16_encode_decode"
    case = json.loads((folder / "case.json").read_text())
    stored = load_file(folder / "tensors.safetensors")
    return case, stored, computed_tensors(tokenizer_of(case), case, stored)


def small_tokenizer(**changes) -> InfinityVAE:
    arguments = {
        "codebook_dim": 14,
        "base_channels": 24,
        "encoder_multipliers": (1, 1, 2, 2),
        "decoder_multipliers": (1, 1, 2, 2),
        "encoder_blocks": 1,
        "decoder_blocks": 1,
    }
    torch.manual_seed(0)
    return InfinityVAE(**(arguments | changes)).eval()


def test_golden_every_tensor(golden):
    case, stored, computed = golden
    assert set(stored) == set(case["tensors"])
    assert differing_tensors(case, stored, computed) == []


@pytest.mark.parametrize("name", ["enc.bits3", "dec.recon", "enc.encoder_mid", "enc.var_input1"])
def test_golden_comparison_notices_a_change(golden, name):
    case, stored, computed = golden
    changed = computed[name].clone()
    changed.view(-1)[0] += 1
    assert differing_tensors(case, stored, computed | {name: changed}) == [name]


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda path: path.stem)
def test_published_layouts_both_ways(path):
    layout = json.loads(path.read_text())
    with torch.device("meta"):
        model = InfinityVAE.published(layout["_meta"]["codebook_dim"])
    expected = {key: tuple(shape) for key, (shape, _) in layout["state_dict"].items()}
    masks = {key for key in expected if key.endswith("lfq.mask")}
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert own == {key: shape for key, shape in expected.items() if key not in masks}
    assert sum(parameter.numel() for parameter in model.parameters()) == layout["_meta"]["parameter_count"]
    assert model.stride == layout["_meta"]["patch_size"]
    plain = {re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", key) for key in own}
    assert len(plain) == len(own)
    assert {official_key(key) for key in plain} == set(own)
    assert all(official_key(key) == key for key in own)


def test_both_spellings_load_and_masks_are_dropped():
    model = small_tokenizer()
    state = model.state_dict()
    plain = {re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", key): value for key, value in state.items()}
    plain["quantizer.lfq.mask"] = plain["quantize.lfq.mask"] = torch.zeros(14, dtype=torch.int64)
    other = small_tokenizer()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    assert other.load_official({"vae": plain}) == ["quantize.lfq.mask", "quantizer.lfq.mask"]
    assert all(torch.equal(other.state_dict()[key], value) for key, value in state.items())


def test_load_names_missing_and_unexpected_keys():
    model = small_tokenizer()
    state, _ = convert_official_state(model.state_dict())
    state["decoder.extra.conv.weight"] = state.pop("decoder.conv_out.conv.bias")
    with pytest.raises(ValueError, match=r"missing \['decoder.conv_out.conv.bias'\].*decoder.extra"):
        model.load_official(state)


def test_token_bits_are_pixel_shuffled():
    latent = torch.zeros(1, 4, 6, 5, dtype=torch.bool)
    latent[0, 3, 4, 2] = True
    tokens = tokens_from_latent_bits(latent)
    assert tokens.shape == (1, 2, 3, 20)
    assert tokens.nonzero().tolist() == [[0, 1, 2, 4 * 2 + 2 * 1 + 0]]
    shuffled = torch.nn.functional.pixel_shuffle(tokens.float().permute(0, 3, 1, 2), 2)
    assert torch.equal(shuffled.permute(0, 2, 3, 1).bool(), latent)


@pytest.mark.parametrize("patchify", [False, True])
def test_token_bits_round_trip(patchify):
    latent = torch.rand(2, 6, 4, 5) > 0.5
    tokens = tokens_from_latent_bits(latent, patchify)
    assert torch.equal(latent_bits_from_tokens(tokens, patchify), latent)


@pytest.mark.parametrize(("patchify", "schedule"), [(False, [(1, 1), (2, 3), (4, 6)]), (True, [(1, 2, 3)])])
def test_image_to_bits_to_image(patchify, schedule):
    model = small_tokenizer(patchify=patchify)
    height, width = (side * model.token_stride for side in schedule[-1][-2:])
    image = torch.rand(2, 3, height, width) * 2 - 1
    with torch.no_grad():
        code = model.encode(image, schedule)
        picture = model.decode_bits(code.bits, schedule)
    assert picture.shape == image.shape
    assert picture.abs().max() <= 1
    torch.testing.assert_close(latent_from_bits(code.bits, code.grids[-1]), code.latent)
    for bits, grid in zip(code.bits, schedule, strict=True):
        tokens = model.tokens_from_latent_bits(bits)
        assert tokens.shape == (2, grid[-2], grid[-1], model.bits_per_token)
        assert torch.equal(model.latent_bits_from_tokens(tokens), bits)


@torch.no_grad()
def test_features_need_no_whole_token():
    model = small_tokenizer(patchify=True)
    features = model.encode_features(torch.rand(1, 3, 3 * model.stride, 2 * model.stride))
    assert features.shape[-2:] == (3, 2)
    with pytest.raises(ValueError, match=f"multiples of {model.stride}"):
        model.encode_features(torch.rand(1, 3, 3 * model.stride + 1, 2 * model.stride))


def test_teacher_inputs_shrink_bilinearly_not_by_area():
    code = quantize_multiscale(torch.randn(1, 8, 8, 8), [(1, 1), (2, 2), (3, 3), (8, 8)])
    assert [tuple(latent.shape[-2:]) for latent in code.teacher_inputs] == [(2, 2), (3, 3), (8, 8)]
    assert torch.equal(code.teacher_inputs[2], code.area_inputs[2])
    assert not torch.equal(code.teacher_inputs[1], code.area_inputs[1])
    assert torch.equal(code.area_inputs[1], resize_area(code.partial_latents[1], (3, 3)))


def test_gradients_pass_straight_through():
    features = torch.randn(1, 8, 6, 6, requires_grad=True)
    code = quantize_multiscale(features, [(1, 1), (3, 3), (6, 6)])
    weights = torch.randn_like(code.latent)
    (code.latent * weights).sum().backward()
    torch.testing.assert_close(features.grad, weights)


def test_flips_enter_the_sum_but_not_the_labels():
    features = torch.randn(2, 8, 6, 6)
    probability = torch.tensor([0.0, 1.0])
    code = quantize_multiscale(features, [(2, 2), (6, 6)], probability)
    clean = quantize_multiscale(features, [(2, 2), (6, 6)])
    assert torch.equal(code.bits[0], clean.bits[0])
    assert torch.equal(code.used_bits[0][0], clean.bits[0][0])
    assert torch.equal(code.used_bits[0][1], ~clean.bits[0][1])
    torch.testing.assert_close(latent_from_bits(code.used_bits, (6, 6)), code.latent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_run_and_quantise_in_float32(dtype):
    model = small_tokenizer().to(dtype)
    with torch.no_grad():
        code = model.encode(torch.rand(1, 3, 32, 16) * 2 - 1, [(1, 1), (4, 2)])
        picture = model.decode_pixels(code.latent)
    assert code.latent.dtype == picture.dtype == torch.float32
    assert picture.isfinite().all()


def test_channels_last_changes_nothing():
    model = small_tokenizer()
    latent = torch.randn(1, 14, 5, 4)
    with torch.no_grad():
        expected = model.decode_pixels(latent)
        torch.testing.assert_close(
            model.decode_pixels(latent.to(memory_format=torch.channels_last)), expected
        )
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model.decode_pixels(latent), expected, atol=2e-5, rtol=0)


def test_save_and_load(tmp_path):
    model = small_tokenizer(patchify=True, norm_groups=8)
    model.save_pretrained(tmp_path)
    again = InfinityVAE.from_pretrained(tmp_path)
    assert again.config.norm_groups == 8
    assert again.token_stride == 16
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_errors_name_the_numbers():
    model = small_tokenizer()
    with pytest.raises(ValueError, match="multiples of 8"):
        model.encode_features(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match="end at the latent grid"):
        model.quantize(torch.zeros(1, 14, 4, 4), [(1, 1), (2, 2)])
    with pytest.raises(ValueError, match="vae_type"):
        InfinityVAE.published(56)
    with pytest.raises(ValueError, match="multiples of 32 or 24"):
        small_tokenizer(base_channels=20)
    with pytest.raises(ValueError, match="stride"):
        small_tokenizer(stride=16)
