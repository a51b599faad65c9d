"""`stepvar reproduce` and `stepvar calibrate` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_report_on_the_command_line(run, model_folder):
    result = run("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.1)
    assert result.code == 0, result.stderr
    assert "pictures of each main method" in result.stderr and "about" in result.stderr
    for word in ("dense", "skip only", "prune and skip", "scene score", "undecided", "report/index.html"):
        assert word in result.stdout
    document = json.loads(Path("report/numbers.json").read_text())
    assert document["run"]["identity"]["minutes"] == 0.1 and len(document["claims"]) >= 14

    again = run("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.1, "--json")
    assert again.code == 0 and "steps were done before" in again.stderr
    assert again.json["exhibits"] == document["exhibits"]

    other = run("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.2)
    assert other.code == 2 and "holds another run (minutes: 0.1, now 0.2)" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reproduce", "--quick", "--minutes", "3"), "--quick is a time of its own"),
        (("reproduce", "-o", "taken"), "'taken' holds other files (thesis.txt)"),
        (("reproduce", "-o", "a/b"), "no folder 'a'"),
        (("calibrate",), "one of the two"),
        (("calibrate", "--target-speedup", "2", "--target-psnr", "20"), "one of the two"),
        (("calibrate", "--target-speedup", "0.5"), "must be above 1"),
        (("calibrate", "--target-speedup", "2", "--method", "fastvr"), "Unknown pruning method 'fastvr'"),
        (("calibrate", "--target-psnr", "20", "--prompts", "absent"), "no prompts file 'absent'"),
        (("calibrate", "--target-psnr", "20", "--prompts", "gap.txt"), "Line 2 of 'gap.txt' is empty"),
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
    assert document["psnr"]["value"] >= 9.0 and document["psnr"]["n"] == 2 and document["trials"]
    drawn = run(
        "generate", "a red star", "--model", model_folder, "-o", "x.png", *document["options"].split()
    )
    assert drawn.code == 0 and Path("x.png").is_file()
