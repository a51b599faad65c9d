"""HART's golden cases pass, FastVAR's fork included, and a single wrong number makes them fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stepvar.conformance import CaseError, run_case

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
    # A stored index is gone on with, so what follows from it is wrong too.
    assert tensor in failed if tensor == "s01.idx" else failed == [tensor]


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
