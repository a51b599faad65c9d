"""HART's golden cases pass, FastVAR's fork included, and a single wrong number makes them fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.conformance import CaseError, run_case
from stepvar.conformance.fastvar import hart_fork
from stepvar.conformance.hart import sliced
from stepvar.models.hart.sizes import scale_schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "hart"
CASES = {
    "t2i_argmax": (79, 13),
    "t2i_smooth_maskgit": (47, 28),
    "t2i_adaln_full": (36, 13),
    "t2i_adaln_shared": (34, 4),
    "diffusion_head": (134, 30),
    "tokenizer": (37, 1),
    "fastvar": (119, 12),
}
"""Cases, with how many results are compared and how many tensors are inputs."""


def edited(name: str, folder: Path, change=None, info=None) -> Path:
    """A copy of a case with changed outputs or another description."""
    shutil.copytree(GOLDEN / name, folder / name)
    if change is not None:
        stored = load_file(folder / name / "outputs.safetensors")
        change(stored)
        save_file(stored, folder / name / "outputs.safetensors")
    if info is not None:
        described = json.loads((folder / name / "case.json").read_text())
        info(described)
        (folder / name / "case.json").write_text(json.dumps(described))
    return folder / name


@pytest.mark.parametrize("name", CASES)
def test_golden_cases_pass_with_everything_compared(name):
    report = run_case(GOLDEN / name)
    assert [entry for entry in report.tensors if not report.tensors[entry].passed] == []
    assert report.uncompared == []
    assert report.passed
    assert (len(report.tensors), len(report.inputs)) == CASES[name]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("t2i_adaln_full", "lvl_embed_out"),
        ("t2i_adaln_full", "s01.idx"),
        ("t2i_adaln_full", "s02.f_hat"),
        ("t2i_adaln_full", "last.it0.diff_cond"),
        ("t2i_adaln_full", "last.it0.diff_out"),
        ("t2i_adaln_full", "f_hat_final"),
        ("diffusion_head", "cfg1.sample3"),
        ("tokenizer", "hybrid.idx4"),
        ("tokenizer", "dec.image_from_discrete"),
    ],
)
def test_one_wrong_number_fails_a_case(tmp_path, name, tensor):
    def change(stored):
        stored[tensor].flatten()[0] += 1

    report = run_case(edited(name, tmp_path, change))
    assert not report.passed
    failed = [entry for entry in report.tensors if not report.tensors[entry].passed]
    # Some of what is stored is gone on with, so what follows from it is wrong too.
    assert tensor in failed if tensor in ("s01.idx", "last.it0.diff_cond") else failed == [tensor]


def test_a_tensor_of_another_name_is_not_passed_over(tmp_path):
    def change(stored):
        stored["s09.secret"] = stored["s00.h"].clone()

    report = run_case(edited("t2i_adaln_full", tmp_path, change))
    assert report.uncompared == ["s09.secret"]
    assert not report.passed


def test_damaged_cases_are_refused_in_words(tmp_path):
    def lose(stored):
        del stored["last.it0.diff_noise_step0"]

    with pytest.raises(CaseError, match=r"lacks the tensor 'last\.it0\.diff_noise_step0'"):
        run_case(edited("t2i_adaln_full", tmp_path, lose))

    def rename(described):
        described["official"]["repo"] = "someone/else"

    with pytest.raises(CaseError, match=r"was made by someone/else; cases of .*mit-han-lab/hart"):
        run_case(edited("tokenizer", tmp_path, info=rename))


def test_a_temperature_scales_the_noise_of_every_step(tmp_path):
    def double(stored):
        for name in stored:
            if "noise_step" in name:
                stored[name] *= 2.0

    def halve(described):
        described["temperature"] = 0.5

    assert run_case(edited("diffusion_head", tmp_path, double, halve)).passed


def test_noise_of_unconditional_tokens_is_left_alone(tmp_path):
    """A guidance of exactly 1 is none in the official code, which then draws for all tokens."""

    def add_rows(stored):
        name = "last.it0.diff_noise_init"
        stored[name] = torch.cat([stored[name], torch.full_like(stored[name], 9.0)])

    def unguided(described):
        described["call"]["cfg"] = 1.5

    (tmp_path / "more").mkdir()
    reports = [
        run_case(edited("t2i_adaln_full", tmp_path, None, unguided)),
        run_case(edited("t2i_adaln_full", tmp_path / "more", add_rows, unguided)),
    ]
    assert reports[0].as_json()["tensors"] == reports[1].as_json()["tensors"]


def test_weights_may_lie_beside_another_case(tmp_path):
    (tmp_path / "weights").mkdir()
    folder = edited("t2i_adaln_full", tmp_path)
    names = {part: f"weights_{part}.safetensors" for part in ("transformer", "tokenizer")}
    for name in names.values():
        (folder / name).rename(tmp_path / "weights" / name)
    described = json.loads((folder / "case.json").read_text())
    described["weights"] = {part: f"../weights/{name} as there" for part, name in names.items()}
    (folder / "case.json").write_text(json.dumps(described))
    assert run_case(folder).passed


def test_the_fork_names_scales_that_occur_twice():
    schedule = scale_schedule([(side, side) for side in (1, 36, 36, 48, 48, 64)])
    method = hart_fork(schedule, lambda *_: None)
    plan = method.plan(schedule, 2)
    assert method.cache_index(plan) == 2
    assert [entry.kept for entry in plan.scales] == [1, 1296, 1296, 1152, 1152, 1024]
    assert hart_fork(scale_schedule([(1, 1), (36, 36)]), lambda *_: None) is None


@pytest.mark.parametrize(("stride", "count"), [(61, 9), (244, 3)])
def test_a_slice_tells_its_stride_by_its_length(stride, count):
    tokens, maps = torch.arange(500.0).view(1, 500, 1), torch.arange(1000.0).view(1, 2, 20, 25)
    assert torch.equal(sliced("s01.logits_raw", tokens, (1, count, 1)), tokens[:, ::stride])
    assert torch.equal(sliced("image", maps, (1, 2, count)), maps.flatten(2)[:, :, ::stride])
    assert torch.equal(sliced("last.it0.diff_out", tokens[0], (count, 1)), tokens[0, ::stride])


def test_slices_follow_the_strides_of_their_case(tmp_path):
    """The same case as if every third of the stored positions had been kept."""
    folder = tmp_path / "fastvar"
    shutil.copytree(GOLDEN / "fastvar", folder)
    for file in (folder / "inputs.safetensors", folder / "outputs.safetensors"):
        stored = load_file(file)
        for name, tensor in stored.items():
            if name.endswith("slice"):
                is_map = name.endswith(("f_hat.slice", "h.slice", "next_map.slice"))
                axis = 0 if "diff_out" in name else 2 if is_map else 1
                stored[name] = tensor[(slice(None),) * axis + (slice(None, None, 3),)].contiguous()
        save_file(stored, file)
    info = json.loads((folder / "case.json").read_text())
    info |= {"token_stride": 3 * info["token_stride"], "logit_stride": 3 * info["logit_stride"]}
    (folder / "case.json").write_text(json.dumps(info))
    report = run_case(folder)
    failed = {key: error for key, error in report.tensors.items() if not error.passed}
    assert report.passed, (failed, report.uncompared)
