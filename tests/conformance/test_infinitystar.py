"""InfinityStar's golden cases pass, and a single wrong number anywhere makes them fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stepvar.conformance import run_case

GOLDEN = Path(__file__).parents[1] / "golden" / "infinitystar"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


@pytest.mark.parametrize("name", CASES)
def test_golden_cases_pass_with_every_tensor_compared(name):
    report = run_case(GOLDEN / name)
    stored = load_file(GOLDEN / name / "tensors.safetensors")
    failed = {key: error for key, error in report.tensors.items() if not error.passed}
    assert report.passed, (failed, report.uncompared)
    assert report.tensors.keys() | set(report.inputs) == stored.keys()
    assert not report.tensors.keys() & set(report.inputs)
    for key, error in report.tensors.items():
        # The specification's own tolerances: guidance of 34 magnifies rounding.
        if stored[key].is_floating_point():
            assert error.max_abs <= (3e-4 if key.endswith(".guided") else 1e-4), key
        elif "image" not in key:
            assert error.max_abs == 0, key


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("t2v_apg_sampled_tokens", "s09.guided"),
        ("t2i_cfg_argmax", "s03.bits_sampled"),
        ("encode_bits", "vid.q11.bits"),
        ("interact_argmax", "cond_detail_condition.rope"),
    ],
)
def test_one_changed_number_fails_a_case(tmp_path, case, tensor):
    folder = tmp_path / case
    shutil.copytree(GOLDEN / case, folder)
    stored = load_file(folder / "tensors.safetensors")
    changed = stored[tensor].flatten()
    changed[-1] = 1 - changed[-1] if changed.dtype.itemsize == 1 else changed[-1] + 0.5
    save_file(stored, folder / "tensors.safetensors")
    report = run_case(folder)
    assert not report.passed
    assert not report.tensors[tensor].passed


def test_a_tensor_that_nobody_knows_is_not_passed_over(tmp_path):
    folder = tmp_path / "case"
    shutil.copytree(GOLDEN / "encode_bits", folder)
    stored = load_file(folder / "tensors.safetensors")
    save_file({**stored, "img.unheard": stored["img.eps"].clone()}, folder / "tensors.safetensors")
    report = run_case(folder)
    assert report.uncompared == ["img.unheard"]
    assert not report.passed


def test_fewer_repetitions_leave_rotary_positions_alone(tmp_path):
    from stepvar.models.infinitystar.schedules import PyramidSettings

    settings = PyramidSettings(1, 4, (3, 2), (3, 2), clip_frames=2, most_repetitions=1)
    schedule = settings.build([(1, 1), (2, 2)], 3)
    assert [step.position for step in schedule] == [512, 515, 517, 520]
    assert json.dumps([step.ends_clip for step in schedule]) == "[false, true, false, true]"


def edited(folder, case, info=None, tensors=None):
    shutil.copytree(GOLDEN / case, folder / case)
    described = json.loads((folder / case / "case.json").read_text())
    if info is not None:
        info(described)
    (folder / case / "case.json").write_text(json.dumps(described))
    if tensors is not None:
        stored = load_file(folder / case / "tensors.safetensors")
        save_file({**stored, **tensors(stored)}, folder / case / "tensors.safetensors")
    return run_case(folder / case)


def test_visual_steps_are_counted_from_the_longest_text_on(tmp_path):
    report = edited(tmp_path, "t2i_cfg_argmax", lambda info: info["transformer_ctor"].update(text_maxlen=100))
    assert report.tensors["cond_t0.rope"].passed and not report.tensors["s00.rope"].passed


def test_without_a_seed_random_bits_are_inputs(tmp_path):
    report = edited(tmp_path, "t2v_apg_sampled_tokens", lambda info: info.update(g_seed=None))
    assert report.passed
    assert {name for name in report.inputs if name.endswith(".bits_sampled")} >= {"s00.bits_sampled"}


def test_given_bits_take_the_place_of_drawn_ones(tmp_path):
    def flip(stored):
        return {"gt.00.bits": 1 - stored["s00.bits_sampled"]}

    report = edited(tmp_path, "t2i_cfg_argmax", tensors=flip)
    assert "gt.00.bits" in report.inputs
    assert report.tensors["s00.bits_sampled"].passed and not report.tensors["s00.codes_up"].passed


def test_encoding_goes_by_the_number_of_cells_alone(tmp_path):
    assert edited(tmp_path, "encode_bits", lambda info: info["args"].update(semantic_scales=0)).passed


def test_a_list_of_guidance_counts_beyond_the_schedule(tmp_path):
    report = edited(tmp_path, "t2i_cfg_argmax", lambda info: info.update(cfg=[1, 1, 1, 1, 3]))
    assert report.tensors["s05.x_in"].passed, "both rows are there"
    assert not report.tensors["s05.prob1"].passed
