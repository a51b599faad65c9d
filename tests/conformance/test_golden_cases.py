"""The golden cases of the official code pass, and a single wrong number anywhere makes them fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.conformance import CaseError, run_case
from stepvar.conformance.fastvar import infinity_fork
from stepvar.conformance.report import compare
from stepvar.models.infinity.sizes import SizeTable

BATCH, NEGATIVE, TOKENIZER = "t2i_006M_1x1_b2", "t2i_006M_3x4_layercfg_neg", "vae_d16_encode_decode"
FASTVAR, FASTERVAR = "fastvar_1M_1x1", "fastervar_1M_1x1"


@pytest.fixture
def edited(golden, tmp_path) -> Callable[..., Path]:
    """Copies a case, beside a link to its weights, and changes its tensors or its description."""

    def copy(name: str, tensors: Callable | None = None, info: Callable | None = None) -> Path:
        shutil.copytree(golden / name, tmp_path / name)
        if not (tmp_path / "tiny_d16").exists():
            (tmp_path / "tiny_d16").symlink_to(golden / "tiny_d16")
        if tensors is not None:
            stored = load_file(tmp_path / name / "tensors.safetensors")
            tensors(stored)
            save_file(stored, tmp_path / name / "tensors.safetensors")
        if info is not None:
            described = json.loads((tmp_path / name / "case.json").read_text())
            info(described)
            (tmp_path / name / "case.json").write_text(json.dumps(described))
        return tmp_path / name

    return copy


@pytest.mark.parametrize("name", [BATCH, NEGATIVE, TOKENIZER, FASTVAR, FASTERVAR])
def test_golden_cases_pass_with_every_tensor_compared(golden, name):
    report = run_case(golden / name)
    stored = load_file(golden / name / "tensors.safetensors")
    assert report.passed
    assert report.uncompared == []
    assert report.tensors.keys() | set(report.inputs) == stored.keys()
    assert not report.tensors.keys() & set(report.inputs)
    floats = [error for key, error in report.tensors.items() if stored[key].is_floating_point()]
    assert max(error.max_rel for error in floats) < 2e-5, "far inside the tolerance"
    for key, error in report.tensors.items():
        if not stored[key].is_floating_point() and "image" not in key:
            assert error.max_abs == 0, key


def test_the_report_is_plain_json(golden):
    report = run_case(golden / TOKENIZER)
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert data["passed"] is True
    assert data["uncompared"] == []
    assert data["tensors"]["enc.bits0"] == {"max_abs": 0.0, "max_rel": 0.0, "passed": True}
    assert data["inputs"] == ["input.image", "dec2.z"]


def nudge(name: str, by: float = 0.0, share: float = 1e-3) -> Callable[[dict], None]:
    """Changes one element: flips a bit, or moves a number by a small share of the tensor's largest."""

    def change(stored: dict) -> None:
        values = stored[name].clone().flatten()
        place = values.numel() // 3
        if values.dtype == torch.uint8 and not by:
            values[place] = 1 - values[place]
        elif by:
            values[place] = values[place] + by if values[place] < 128 else values[place] - by
        else:
            values[place] += share * max(1.0, float(values.abs().max()))
        stored[name] = values.view(stored[name].shape)

    return change


@pytest.mark.parametrize(
    "name",
    [
        "text.kv_after_text_norm",
        "text.cond_BD",
        "text.kv_for_ca",
        "text.shared_gss",
        "s00.block0_input",
        "s02.block0_output",
        "s05.last_block_output",
        "s03.head_out",
        "s04.logits",
        "s02.summed_codes",
        "final.summed_codes",
        "final.decoded_crop",
        "final.decoded_avgpool8",
    ],
)
def test_one_changed_number_of_a_generation_fails(edited, name):
    report = run_case(edited(NEGATIVE, nudge(name)))
    assert not report.passed
    assert [key for key, error in report.tensors.items() if not error.passed] == [name]


def test_one_changed_choice_score_or_cached_number_of_fastvar_fails(edited):
    names = ["s09.L04.ca.kept_indices", "s10.L03.sa.scores", "cache.L05.ffn", "s10.logits"]

    def change(stored: dict) -> None:
        for name in names[1:]:
            nudge(name)(stored)
        # Another position, not another order: the one that was left out.
        kept = stored[names[0]][0]
        kept[kept.numel() // 3] = min(set(range(1024)) - set(kept.tolist()))

    report = run_case(edited(FASTVAR, change))
    assert not report.passed
    assert sorted(key for key, error in report.tensors.items() if not error.passed) == sorted(names)


def test_one_changed_step_of_fastervar_fails(edited):
    """Its numbers and base show up behind them; what it computed shows up in place."""
    names = [
        *("s09.block3_output", "s10.chunk1.probabilities", "s10.chunk1.input", "s10.chunk0.projected"),
        *("s10.chunk2.indices", "s10.head_input", "s10.block3_output"),
    ]

    def change(stored: dict) -> None:
        for name in names:
            if name.endswith("indices"):
                stored[name][0, [3, 9]] = stored[name][0, [9, 3]]
            else:
                nudge(name)(stored)

    report = run_case(edited(FASTERVAR, change))
    failed = {key for key, error in report.tensors.items() if not error.passed}
    assert set(names) <= failed
    assert failed - set(names) <= {"s10.head_input", "s10.logits", "s10.bits", "final.summed_codes"} | {
        key for key in failed if key.startswith("final")
    }


def test_changed_random_numbers_of_fastervar_fail(edited):
    def change(stored: dict) -> None:
        numbers = stored["s10.chunk0.gaussian"].float()
        numbers[0, 100, 5] += 8.0
        stored["s10.chunk0.gaussian"] = numbers

    report = run_case(edited(FASTERVAR, change))
    assert not report.tensors["s10.chunk0.projected"].passed
    assert report.tensors["s10.chunk0.indices"].passed


@pytest.mark.parametrize("name", ["enc.h", "enc.bits2", "enc.residual1", "enc.var_input0", "dec2.recon"])
def test_one_changed_number_of_the_tokenizer_fails(edited, name):
    report = run_case(edited(TOKENIZER, nudge(name)))
    assert [key for key, error in report.tensors.items() if not error.passed] == [name]


def test_changed_probabilities_or_draws_of_the_sampler_fail(edited):
    def change(stored: dict) -> None:
        for name in ("sampler.probs_k900_p097", "sampler.idx_k900_p097_seed3"):
            nudge(name)(stored)

    report = run_case(edited(BATCH, change))
    failed = [key for key, error in report.tensors.items() if not error.passed]
    assert sorted(failed) == ["sampler.idx_k900_p097_seed3", "sampler.probs_k900_p097"]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (NEGATIVE, "input.kv_compact"),
        (NEGATIVE, "input.neg_kv_compact"),
        (TOKENIZER, "input.image"),
        (TOKENIZER, "dec2.z"),
        (BATCH, "sampler.logits"),
    ],
)
def test_a_changed_input_fails(edited, case, name):
    assert not run_case(edited(case, nudge(name, share=0.5))).passed


def test_a_picture_may_differ_by_one_in_few_bytes_only(edited):
    name = "final.image_uint8_bgr_crop"
    assert run_case(edited(NEGATIVE, nudge(name, by=1))).passed


def test_a_picture_that_differs_by_two_somewhere_fails(edited):
    name = "final.image_uint8_bgr_crop"
    report = run_case(edited(NEGATIVE, nudge(name, by=2)))
    assert [key for key, error in report.tensors.items() if not error.passed] == [name]


def test_a_picture_that_differs_by_one_in_many_bytes_fails():
    stored = torch.full((1, 40, 50, 3), 100, dtype=torch.uint8)
    computed = stored.clone()
    computed.view(-1)[:5] += 1
    assert compare(computed, stored, picture=True).passed
    computed.view(-1)[:6] = 101
    assert not compare(computed, stored, picture=True).passed
    assert not compare(computed, stored).passed, "bits and indices have no tolerance"


def test_wrong_settings_fail(edited):
    def change(info: dict) -> None:
        info["call"]["cfg_list"][4] = 2.5

    report = run_case(edited(NEGATIVE, info=change))
    assert not report.passed
    assert report.tensors["s03.logits"].passed
    assert not report.tensors["s04.logits"].passed


def test_a_tensor_that_nobody_computes_is_named_and_fails(edited):
    def change(stored: dict) -> None:
        stored["s03.mystery"] = torch.zeros(3)

    report = run_case(edited(NEGATIVE, change))
    assert report.uncompared == ["s03.mystery"]
    assert not report.passed
    assert all(error.passed for error in report.tensors.values())
    assert report.as_json()["uncompared"] == ["s03.mystery"]


def test_another_shape_and_numbers_that_are_not_finite_fail_with_a_note(edited):
    def change(stored: dict) -> None:
        stored["s04.logits"] = stored["s04.logits"][:, :-1].contiguous()
        stored["s05.logits"] = stored["s05.logits"].clone()
        stored["s05.logits"][0, 0, 0] = float("nan")

    report = run_case(edited(NEGATIVE, change))
    failed = {key: error.note for key, error in report.tensors.items() if not error.passed}
    assert failed.keys() == {"s04.logits", "s05.logits"}
    assert "shapes differ" in failed["s04.logits"]
    assert "not finite" in failed["s05.logits"]


def test_a_case_without_anything_to_compare_does_not_pass(edited):
    def change(stored: dict) -> None:
        for name in [name for name in stored if not name.startswith("input")]:
            del stored[name]

    report = run_case(edited(NEGATIVE, change))
    assert report.tensors == {}
    assert not report.passed


def test_stored_bits_go_into_the_next_scale(edited):
    def change(stored: dict) -> None:
        nudge("s03.bits")(stored)

    report = run_case(edited(NEGATIVE, change))
    failed = {key for key, error in report.tensors.items() if not error.passed}
    assert "s03.bits" in failed
    assert {"s04.block0_input", "final.summed_codes"} <= failed, "a wrong stored bit is not papered over"
    assert not any(key.startswith(("s00", "s01", "s02", "text")) for key in failed)


def test_numbers_and_lists_of_settings_mean_the_same(edited):
    def change(info: dict) -> None:
        info["call"] |= {"cfg_list": 4.0, "tau_list": 0.5}

    assert run_case(edited(BATCH, info=change)).passed


def test_forced_scales_are_inputs_and_the_rest_is_compared(edited):
    def change(info: dict) -> None:
        info["call"]["gt_leak"] = 3

    report = run_case(edited(BATCH, info=change))
    assert report.passed
    assert {"s00.bits", "s01.bits", "s02.bits"} <= set(report.inputs)


def unreadable(folder: Path, kind: str) -> Path:
    """Damages a copied case."""
    tensors, info = folder / "tensors.safetensors", folder / "case.json"
    content = {
        "truncated tensors": (tensors, tensors.read_bytes()[:5000]),
        "empty tensors": (tensors, b""),
        "no words": (info, b"\xff\xfe\x00\x80"),
        "half a description": (info, b'{"call": {'),
        "a list": (info, b"[1, 2]"),
    }
    if kind == "no tensors":
        tensors.unlink()
    elif kind == "no description":
        info.unlink()
    else:
        content[kind][0].write_bytes(content[kind][1])
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        "truncated tensors",
        "empty tensors",
        "no tensors",
        "no words",
        "half a description",
        "a list",
        "no description",
    ],
)
def test_unreadable_cases_are_refused_in_words(edited, kind):
    with pytest.raises(CaseError, match=r"no(t a readable)? golden case|describes no case"):
        run_case(unreadable(edited(NEGATIVE), kind))


def test_folders_that_are_no_case_are_refused_in_words(golden, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere", golden / "tiny_d16", golden / "scale_schedules.json"):
        with pytest.raises(CaseError, match=r"There is no golden case|not a readable golden case"):
            run_case(folder)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (
            lambda info: info["call"].pop("scale_schedule"),
            r"do not fit together: KeyError\('scale_schedule'\)",
        ),
        (lambda info: info["call"].update(lens=[4]), r"do not fit together"),
        (lambda info: info.update(call="all"), r"do not fit together"),
        (lambda info: info["call"].update(cfg_list=[3.0]), r"cfg_list has 1 entries, but the schedule has 7"),
        (lambda info: info.update(official_repo="someone/Unknown"), r"made by someone/Unknown"),
        (lambda info: info.pop("official_repo"), r"made by an unnamed repository"),
    ],
)
def test_cases_that_contradict_themselves_are_refused_in_words(edited, info, words):
    with pytest.raises(ValueError, match=words):
        run_case(edited(NEGATIVE, info=info))


def test_a_missing_input_or_missing_weights_are_refused_in_words(edited, tmp_path):
    with pytest.raises(CaseError, match=r"lacks the tensor 'input\.kv_compact'"):
        run_case(edited(NEGATIVE, lambda stored: stored.pop("input.kv_compact")))
    (tmp_path / "tiny_d16").unlink()
    with pytest.raises(CaseError, match=r"safetensors' cannot be read"):
        run_case(tmp_path / NEGATIVE)


def test_the_fork_of_a_shallow_model_leaves_scales_out_and_prunes_nothing():
    schedule = SizeTable.published().schedule(1.0, "1M")
    deep, shallow = (
        infinity_fork(schedule, depth, lambda *_: None).plan(schedule, depth) for depth in (30, 3)
    )
    assert [entry.scale.width for entry in shallow.scales if entry.skipped] == [48, 64]
    assert not shallow.prunes
    assert [(e.scale.width, e.kept, e.first_layer, e.last_layer) for e in deep.scales if e.prunes] == [
        (32, 615, 3, 28),
        (40, 800, 3, 28),
    ]
    assert infinity_fork(SizeTable.published().schedule(0.571, "1M"), 6, lambda *_: None) is None
