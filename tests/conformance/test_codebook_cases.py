"""The golden cases of VAR and Switti pass, and a single wrong number anywhere makes them fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.conformance import CaseError, run_case
from stepvar.conformance.case import Case, Comparison
from stepvar.conformance.codebook import ReplaySampler
from stepvar.conformance.var import _classes
from stepvar.models.common.vq_vae_checkpoints import vae_from_state
from stepvar.models.var.vae import VARVAE

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(
    str(folder.parent.relative_to(GOLDEN))
    for model in ("var", "switti")
    for folder in (GOLDEN / model).glob("*/case.json")
)


@pytest.mark.parametrize("name", CASES)
def test_golden_cases_pass_with_every_tensor_compared(name):
    report = run_case(GOLDEN / name)
    stored = load_file(GOLDEN / name / "tensors.safetensors")
    assert report.passed
    assert report.uncompared == []
    assert stored.keys() <= report.tensors.keys() | set(report.inputs)
    assert not report.tensors.keys() & set(report.inputs)
    exact = [
        key for key, error in report.tensors.items() if key in stored and not stored[key].is_floating_point()
    ]
    assert all(report.tensors[key].max_abs == 0 for key in exact)
    assert max(error.max_rel for error in report.tensors.values()) < 5e-5, "inside the tolerance"


@pytest.fixture
def edited(tmp_path):
    """Copies a case beside links to the others, whose weights it may name, and changes one number of it."""

    def copy(name: str, tensor: str) -> Path:
        model, case = name.split("/")
        for other in (GOLDEN / model).iterdir():
            if other.is_dir() and other.name != case:
                (tmp_path / other.name).symlink_to(other)
        shutil.copytree(GOLDEN / model / case, tmp_path / case)
        stored = load_file(tmp_path / case / "tensors.safetensors")
        values = stored[tensor].flatten()
        place = values.numel() // 3
        if values.is_floating_point():
            values[place] += 1e-3 * float(values.abs().max())
        else:
            values[place] = 1 - values[place] if values.dtype == torch.uint8 else values[place] ^ 1
        stored[tensor] = values.view(stored[tensor].shape)
        save_file(stored, tmp_path / case / "tensors.safetensors")
        return tmp_path / case

    return copy


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("var/vqvae", "f_hat.04"),
        ("var/vqvae", "tokens.06"),
        ("var/generate_smooth", "s04.logits_cfg"),
        ("var/generate_smooth", "image"),
        ("var/train_forward", "grad.blocks.0.attn.q_bias"),
        ("var/train_forward", "attn_bias_is_visible"),
        ("switti/generate_argmax", "crop_embed"),
        ("switti/generate_argmax", "s02.block0_crossattn_out"),
        ("switti/generate_ar", "s05.blocklast_out"),
        ("switti/encode_prompt", "pooled_prompt_embeds"),
    ],
)
def test_one_changed_number_fails(edited, name, tensor):
    report = run_case(edited(name, tensor))
    assert not report.passed
    assert tensor in [key for key, error in report.tensors.items() if not error.passed]


def test_an_uncompared_tensor_fails_a_case(edited):
    folder = edited("switti/encode_prompt", "pooled_prompt_embeds")
    stored = load_file(folder / "tensors.safetensors")
    stored["unheard.of"] = torch.zeros(2)
    save_file(stored, folder / "tensors.safetensors")
    assert run_case(folder).uncompared == ["unheard.of"]


def test_missing_weights_are_named(edited):
    folder = edited("switti/encode_prompt", "pooled_prompt_embeds")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CaseError, match=r"weights\.safetensors' cannot be read"):
        run_case(folder)


def test_scales_of_a_case_need_not_be_square(tmp_path):
    grids = [(1, 1), (2, 1), (3, 3), (6, 4)]
    weights = load_file(GOLDEN / "var/vqvae/weights.safetensors")
    tokenizer = vae_from_state(VARVAE, {key: value.float() for key, value in weights.items()})
    image = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        code = tokenizer.encode(image, grids)
    tensors = {"image_in": image, "f_hat.03": code.latent.contiguous(), "tokens.03": code.index[3]}
    (tmp_path / "weights.safetensors").symlink_to(GOLDEN / "var/vqvae/weights.safetensors")
    save_file(tensors, tmp_path / "tensors.safetensors")
    info = json.loads((GOLDEN / "var/vqvae/case.json").read_text())
    (tmp_path / "case.json").write_text(json.dumps({**info, "schedule": [list(grid) for grid in grids]}))
    assert run_case(tmp_path).passed
    (tmp_path / "case.json").write_text(json.dumps({**info, "schedule": "(1, 1), (2, 2), (3, 3), (6, 4)"}))
    assert not run_case(tmp_path).passed


def described(folder: Path, name: str, change) -> Path:
    """A link to a case with another description, beside links to the others."""
    model, case = name.split("/")
    for other in (GOLDEN / model).iterdir():
        if other.is_dir() and other.name != case:
            (folder / other.name).symlink_to(other)
    shutil.copytree(GOLDEN / model / case, folder / case)
    info = json.loads((folder / case / "case.json").read_text())
    change(info)
    (folder / case / "case.json").write_text(json.dumps(info))
    return folder / case


def test_unconditional_rows_run_up_to_where_they_are_turned_off(tmp_path):
    """Whether or not any scale mixes them."""
    folder = described(tmp_path, "switti/generate_ar", lambda info: info["run"].update(cfg=0.0))
    report = run_case(folder)
    assert not any(error.note for error in report.tensors.values()), "every shape is the stored one"


def test_the_last_temperature_waits_for_guidance_to_have_been_turned_on(tmp_path):
    def change(info):
        info["run"].update(turn_on_cfg_start_si=6, last_scale_temp=0.1)

    report = run_case(described(tmp_path, "switti/generate_ar", change))
    assert report.tensors["s05.logits_cfg"].passed
    assert not report.tensors["s03.logits_cfg"].passed, "no longer guided"


def test_classes_may_be_drawn_before_anything_else():
    config = json.loads((GOLDEN / "var/generate_sampled/case.json").read_text())
    transformer = SimpleNamespace(config=SimpleNamespace(classes=10), unconditional_class=10)
    comparison = Comparison(Case(GOLDEN, config, {}))

    def sampler() -> ReplaySampler:
        return ReplaySampler(comparison, torch.zeros(4, 2), 1234, 40, 0.9, [None] * 10)

    generator = torch.Generator().manual_seed(1234)
    expected = torch.multinomial(torch.full((1, 10), 0.1), 3, replacement=True, generator=generator)[0]
    drawing = sampler()
    assert torch.equal(_classes({"label_B": None, "B": 3}, transformer, drawing), expected)
    assert torch.equal(torch.rand(1, generator=drawing.generator), torch.rand(1, generator=generator))
    assert _classes({"label_B": -1, "B": 2}, transformer, sampler()).tolist() == [10, 10]


def test_random_draws_without_a_seed_are_inputs(tmp_path):
    report = run_case(
        described(tmp_path, "var/generate_smooth", lambda info: info["run"].update(g_seed=None))
    )
    assert report.passed
    assert {"s09.tokens", "s09.soft_weights"} <= set(report.inputs)


def test_the_schedule_may_be_listed_anywhere(tmp_path):
    sides = json.loads((GOLDEN / "var/vqvae/case.json").read_text())["constructor"]["VQVAE"]["v_patch_nums"]

    def change(info):
        info["constructor"]["VQVAE"]["v_patch_nums"] = [1, 2, 3]
        info["padding"] = [[9, 9]]
        info["run"] = {"v_patch_nums": [[side, side] for side in sides]}

    assert run_case(described(tmp_path, "var/vqvae", change)).passed


def test_a_schedule_that_the_weights_do_not_tell_comes_from_the_constructor(tmp_path):
    folder = described(tmp_path, "var/generate_argmax", lambda info: None)
    state = load_file(folder / "weights.safetensors")
    save_file({key: value for key, value in state.items() if key != "lvl_1L"}, folder / "weights.safetensors")
    assert run_case(folder).passed
