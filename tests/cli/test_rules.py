"""Rules of one's own on the command line, and the list of presets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stepvar.pruning.recovery import RECOVERIES
from stepvar.pruning.scores import SCORERS

RULES = """
from stepvar.pruning.recovery import Nearest, recovery

def contrast(tokens, *, power=1.0):
    return tokens.features.float().std(dim=-1) ** power

@recovery("half nearest")
class Half(Nearest):
    def after(self, kept):
        return 0.5 * super().after(kept)

def flat(tokens):
    return tokens.features.sum()
"""


@pytest.fixture(autouse=True)
def own_rules(tmp_path):
    """A module with rules in the current folder; what commands register is gone after a test."""
    (tmp_path / "cli_test_rules.py").write_text(RULES)
    saved = [(registry, dict(registry._rules)) for registry in (SCORERS, RECOVERIES)]
    yield
    for registry, known in saved:
        registry._rules = known
    sys.modules.pop("cli_test_rules", None)


def test_a_rule_from_outside_draws_with_the_program(program, model_folder, tmp_path):
    command, environment = program
    arguments = [
        "generate",
        "a red star",
        "--model",
        str(model_folder),
        "--seed",
        "3",
        "-o",
        "a.png",
        "--json",
    ]
    rules = ["--ratios", "8=0.5", "--score", "cli_test_rules:contrast", "--recovery", "cli_test_rules:Half"]
    done = subprocess.run(
        [*command, *arguments, *rules],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pruning = json.loads(done.stdout)["settings"]["pruning"]
    assert (pruning["score"], pruning["recovery"]) == ("contrast", "half nearest")


def test_a_rule_changes_a_preset(run, model_folder):
    result = run("summary", "--model", model_folder, "--pruning", "prune", "--recovery", "guided", "--json")
    assert result.code == 0, result.stderr
    result = run(
        "compare", "a red star", "--model", model_folder, "--repeats", 1, "--json", "--score", "texture"
    )
    assert result.json["settings"]["pruning"]["score"] == "texture"
    assert result.json["settings"]["pruning"]["ratios"] == {"-4": 0.4, "-3": 0.5}, "the paper's plan"


def test_values_and_guidance_are_options(run, model_folder):
    arguments = ("generate", "a red star", "--model", model_folder, "--seed", 1, "-o", "a.png", "--json")
    pruning = run(*arguments, "--values", "expected", "--ratios", "8=0.5").json["settings"]["pruning"]
    assert pruning["values"] == "expected"
    pruning = run(*arguments, "--unguided", -1).json["settings"]["pruning"]
    assert (pruning["unguided"], pruning["ratios"], pruning["skip"]) == (-1, {}, [])
    pruning = run(*arguments, "--unguided", -1, "--remaining", "unconditional").json["settings"]["pruning"]
    assert (pruning["unguided"], pruning["remaining"], pruning["ratios"]) == (-1, "unconditional", {})


def test_bench_measures_a_rule_beside_the_usual_plans(run, model_folder):
    rule = ("--ratios", "8=0.5", "--score", "cli_test_rules:contrast")
    document = run("bench", "--model", model_folder, "--repeats", 1, "--json", *rule).json
    assert "ratios 8=0.5 score cli_test_rules:contrast" in document["methods"]
    assert "dense" in document["methods"]


def test_evaluate_names_the_rule(run, model_folder):
    rule = ("--ratios", "8=0.5", "--score", "cli_test_rules:contrast")
    document = run("evaluate", "scenes", "--model", model_folder, "-n", 2, "--json", *rule).json
    assert document["pruning"] == "ratios 8=0.5 score cli_test_rules:contrast"


def test_the_report_has_a_row_for_a_rule(run, model_folder):
    rules = ("--score", "cli_test_rules:contrast", "--recovery", "cli_test_rules:Half")
    result = run("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.1, "--json", *rules)
    assert result.code == 0, result.stderr
    tables = json.loads(Path("report/numbers.json").read_text())["tables"]
    assert "contrast" in {row["label"] for row in tables["selection"]}
    assert "half nearest" in {row["label"] for row in tables["recovery"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--score", "magic"), "Unknown score 'magic'; known are structure+texture"),
        (
            ("--score", "no_such_module:rule"),
            "There is no module 'no_such_module': run in the folder",
        ),
        (("--score", "cli_test_rules:missing"), "Module 'cli_test_rules' has no 'missing'"),
        (("--score", "cli_test_rules:Half"), "A score is a name or a function"),
        (("--score", "cli_test_rules:flat"), "Score 'flat' returned (); it must return one number a token"),
        (("--recovery", "cli_test_rules:contrast"), "A recovery is a name or an object"),
        (("--values", "all"), "Unknown kind of values 'all'"),
        (("--score", "texture", "--pruning", "none"), "--pruning none prunes nothing: leave --score out"),
        (("--score", "texture", "--pruning", "fastvar"), "score is no field of FastVAR (preset 'fastvar')"),
        (
            ("--score", "texture", "--method", "fastvar", "--ratios", "8=0.5"),
            "score is no field of FastVAR (--method fastvar)",
        ),
        (("--unguided", 0), "No scale is 0 tokens high"),
        (
            ("--unguided", -1, "--remaining", "both"),
            "Unknown copies 'both' in remaining; known are conditional",
        ),
        (("--remaining", "unconditional", "--pruning", "paper"), "guidance stays: name the first scale"),
    ],
)
def test_rules_that_cannot_be_used_are_one_sentence(run, model_folder, options, words):
    result = run("generate", "a red star", "--model", model_folder, "-o", "a.png", *options)
    assert result.code == 2 and result.stdout == "" and words in result.stderr
    assert result.stderr.count("\n") == 1 and not Path("a.png").exists()


def test_presets_are_listed(run, model_folder):
    everything = run("presets")
    assert everything.code == 0
    for words in ("Infinity\n", "HART\n", "InfinityStar\n", "720p-2x", "measured on: ", "best"):
        assert words in everything.stdout
    for model in (model_folder, "infinity", "embedded"):
        document = run("presets", "--model", model, "--json").json
        assert list(document) == ["infinity"]
        assert {"paper", "best", "faithful"} <= document["infinity"].keys()
        assert all(entry["description"] and entry["measured_on"] for entry in document["infinity"].values())
    unknown = run("presets", "--model", "infinty")
    assert unknown.code == 2 and "Unknown model 'infinty'; known are infinity, infinitystar" in unknown.stderr


def test_help_names_best_and_faithful(run):
    text = " ".join(run("generate", "--help").stdout.split())
    assert "best (fastest at about equal quality), faithful (nearest to dense)" in text
