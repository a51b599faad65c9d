"""`stepvar reproduce` and `stepvar calibrate` as commands."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from check_report import complaints


def test_a_report_on_the_command_line(run, model_folder):
    result = run("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.1)
    assert result.code == 0, result.stderr
    assert "pictures of the plans in question" in result.stderr and "about" in result.stderr
    for word in ("dense", "skip only", "prune and skip", "scene score", "undecided", "report/index.html"):
        assert word in result.stdout
    document = json.loads(Path("report/numbers.json").read_text())
    assert document["run"]["identity"]["minutes"] == 0.1 and len(document["claims"]) >= 20

    again = run("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.1, "--json")
    assert again.code == 0 and "steps were done before" in again.stderr
    assert again.json["tables"] == document["tables"]

    other = run("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.2)
    assert other.code == 2 and "holds another run (minutes: 0.1, now 0.2)" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reproduce", "--quick", "--minutes", "3"), "--quick is a time of its own"),
        (("reproduce", "-o", "taken"), "'taken' holds other files (thesis.txt)"),
        (("reproduce", "-o", "a/b"), "no folder 'a'"),
        (("reproduce", "--lpips", "vgg19"), "Unknown LPIPS network 'vgg19'"),
        (("reproduce", "--cascade", "absent"), "no file or folder 'absent'"),
        (("generate", "a red star", "--drafted", "3"), "name the other by --cascade"),
        (("generate", "a red star", "--cascade", "absent"), "no file or folder 'absent'"),
        (("calibrate",), "one of the two"),
        (("calibrate", "--target-speedup", "2", "--target-psnr", "20"), "one of the two"),
        (("calibrate", "--target-speedup", "0.5"), "must be above 1"),
        (("calibrate", "--target-speedup", "2", "--method", "fastvr"), "Unknown pruning method 'fastvr'"),
        (("calibrate", "--target-psnr", "20", "--prompts", "absent"), "no prompts file 'absent'"),
        (("calibrate", "--target-psnr", "20", "--prompts", "gap.txt"), "Line 2 of 'gap.txt' is empty"),
        (("calibrate", "--target-psnr", "20", "--ratios=-1=0.5"), "searched for: leave --ratios out"),
        (("calibrate", "--target-psnr", "20", "-o", "absent/plan.json"), "is no place for a plan"),
        (("calibrate", "--recovery", "calibrated", "--target-psnr", "20"), "one of the two"),
        (("calibrate", "--recovery", "calibrated", "--ratios=-1=0.5"), "Name a .json file with -o"),
        (("calibrate", "--recovery", "calibrated", "-o", "p.json"), "fitted to a plan: give --pruning, or"),
        (
            ("calibrate", "--recovery", "calibrated", "--pruning", "fastvar", "-o", "p.json"),
            "for a plan of StepVAR, and this is FastVAR",
        ),
    ],
)
def test_bad_input_is_one_sentence(run, model_folder, arguments, words):
    Path("taken").mkdir()
    Path("taken", "thesis.txt").write_text("mine")
    Path("gap.txt").write_text("a red star\n\na blue ring\n")
    result = run(*arguments, "--model", model_folder)
    assert result.code == 2 and result.stdout == "" and words in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_calibrating_on_the_command_line(run, model_folder):
    Path("prompts.txt").write_text("a red star\na blue ring\n")
    arguments = ("calibrate", "--model", model_folder, "--target-psnr", "9", "--prompts", "prompts.txt")
    document = run(*arguments, "--json").json
    [chosen] = [trial for trial in document["trials"] if trial["options"] == document["options"]]
    assert chosen["psnr"] >= 9.0 and document["psnr"]["n"] == 1
    assert document["error"] == pytest.approx(document["psnr"]["value"] / 9.0 - 1.0)
    assert (document["warning"] is None) == (abs(document["error"]) <= 0.05)
    generated = run(
        "generate", "a red star", "--model", model_folder, "-o", "x.png", *document["options"].split()
    )
    assert generated.code == 0 and Path("x.png").is_file()


def test_a_recovery_is_fitted_and_used_on_the_command_line(run, model_folder):
    arguments = ("calibrate", "--model", model_folder, "--recovery", "calibrated", "--ratios=-2=0.4,-1=0.6")
    fitted = run(*arguments, "-n", 8, "-o", "plan.json")
    assert fitted.code == 0, fitted.stderr
    for words in ("less error", "8x8", "on 2 prompts that the fit did not see", "plan.safetensors"):
        assert words in fitted.stdout
    drawn = run(
        "generate", "a red star", "--model", model_folder, "--pruning", "plan.json", "-o", "x.png", "--json"
    )
    assert drawn.json["settings"]["pruning"]["recovery"]["name"] == "calibrated"
    summary = run("summary", "--model", model_folder, "--pruning", "plan.json").stdout
    assert "maps fitted to these weights" in summary
    compared = run("compare", "a red star", "--model", model_folder, "--pruning", "plan.json", "--repeats", 1)
    assert compared.code == 0 and "plan: plan.json" in compared.stdout
    # The plan with another score, and with another recovery.
    for change in (("--score", "texture"), ("--recovery", "guided")):
        assert run("summary", "--model", model_folder, "--pruning", "plan.json", *change).code == 0
    Path("plan.safetensors").unlink()
    for command in (("generate", "a red star"), ("bench",), ("evaluate", "scenes", "-n", 2)):
        lost = run(*command, "--model", model_folder, "--pruning", "plan.json")
        assert lost.code == 2 and "plan.safetensors' cannot be read" in lost.stderr
    bare = run(
        "generate", "a red star", "--model", model_folder, "--ratios=-1=0.5", "--recovery", "calibrated"
    )
    assert bare.code == 2 and "has to be fitted to the model" in bare.stderr


def test_a_found_plan_is_stored(run, model_folder):
    arguments = ("calibrate", "--model", model_folder, "--target-psnr", "9", "-n", 3, "-o", "found.json")
    document = run(*arguments, "--json").json
    assert document["files"] == ["found.json"]
    summary = run("summary", "--model", model_folder, "--pruning", "found.json", "--json").json
    assert summary == run("summary", "--model", model_folder, *document["options"].split(), "--json").json


def test_a_missed_target_is_a_warning_on_the_command_line(run, model_folder):
    """Pruning as much as can be pruned leaves more than 1 dB."""
    result = run("calibrate", "--model", model_folder, "--target-psnr", "1", "-n", 3)
    assert result.code == 0 and result.stderr.startswith("Warning: On what was held back, the PSNR is ")
    assert result.stderr.endswith(" above the target of 1 dB.\n") and "Warning" not in result.stdout


def test_two_models_on_the_command_line(run, model_folder):
    """The same model twice draws its own picture: the command line hands the scales on as asked."""
    plain = run(
        "generate", "a red star", "--model", model_folder, "--seed", 3, "-o", "one.png", "--json"
    ).json
    arguments = ("--model", model_folder, "--cascade", model_folder)
    both = run(
        "generate", "a red star", *arguments, "--drafted", 4, "--seed", 3, "-o", "two.png", "--json"
    ).json
    assert plain["settings"]["cascade"] is None and both["settings"]["cascade"]["scales"] == 4
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert one.tobytes() == two.tobytes()
    alone, costs = (
        run("summary", "--model", model_folder, "--json").json,
        run("summary", *arguments, "--json").json,
    )
    assert costs["flops"] > alone["flops"] == costs["dense_flops"]
    wrong = run("summary", *arguments, "--drafted", 6)
    assert wrong.code == 2 and "6 of 6 scales cannot be drafted" in wrong.stderr


def test_a_report_that_is_stopped_and_killed_goes_on(run, program, model_folder, tmp_path):
    """Ctrl-C and a kill at different moments, the first one before anything is measured: nothing is lost."""
    command, environment = program
    arguments = ["reproduce", "--model", str(model_folder), "-o", "report", "--minutes", "0.1"]
    raw, done = tmp_path / "report" / "raw", set()
    for number, least in ((signal.SIGINT, 0), (signal.SIGINT, 4), (signal.SIGKILL, 12)):
        process = subprocess.Popen(
            [*command, *arguments],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while process.poll() is None and not (raw.is_dir() and len(list(raw.glob("*.json"))) >= least):
            time.sleep(0.02)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
        assert stdout == "" and "Traceback" not in stderr
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        now = {(file.name, file.stat().st_mtime_ns) for file in raw.glob("*.json")}
        assert done <= now and len(now) >= least, "what is measured stays"
        done = now
    finished = run(*arguments)
    assert finished.code == 0 and list(complaints(tmp_path / "report")) == []
    assert done <= {(file.name, file.stat().st_mtime_ns) for file in raw.glob("*.json")}
    assert not list((tmp_path / "report").rglob("*.partial"))
