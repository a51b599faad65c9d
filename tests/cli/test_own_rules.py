"""A score of the user's stands under its own name in every table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stepvar.pruning.scores import SCORERS

MODULE = """
def contrast(tokens):
    return tokens.features.float().abs().mean(dim=-1)
"""


@pytest.fixture
def module(run):
    """A module in the current folder, forgotten afterwards."""
    Path("my_rules.py").write_text(MODULE)
    yield "my_rules:contrast"
    sys.modules.pop("my_rules", None)
    SCORERS._rules.pop("contrast", None)


@pytest.mark.parametrize("score", ["json:loads", "math:sqrt", "my_rules:broken"])
def test_a_function_that_is_no_score_is_one_sentence(run, model_folder, module, score):
    Path("my_rules.py").write_text("def broken(tokens):\n    return tokens.colours\n")
    result = run("generate", "a red star", "--model", model_folder, "--score", score, "-o", "x.png")
    name = score.partition(":")[2]
    SCORERS._rules.pop(name, None)
    assert result.code == 2 and f"The score '{name}' failed on its tokens" in result.stderr
    assert result.stderr.count("\n") == 1 and not Path("x.png").exists()


def test_bench_compare_and_evaluate_name_the_rule(run, model_folder, module):
    model = ("--model", model_folder, "--score", module)
    bench = run("bench", *model, "--repeats", 1)
    assert bench.code == 0 and f"score {module}" in bench.stdout, bench.stderr
    compare = run("compare", "a red star", *model, "--repeats", 1, "-o", "x.png")
    assert compare.code == 0 and f"plan: score {module}" in compare.stdout
    document = run("compare", "a red star", *model, "--repeats", 1, "-o", "x.png", "--json").json
    assert document["settings"]["pruning"]["score"] == "contrast"
    scenes = run("evaluate", "scenes", *model, "-n", 2)
    assert scenes.code == 0 and f"plan: score {module}" in scenes.stdout
    Path("meta_data.json").write_text(json.dumps({"a": {"category": "x", "prompt": "a red star"}}))
    drawn = run("evaluate", "mjhq", "meta_data.json", *model, "-o", "mjhq", "--json")
    assert drawn.json["plan"]["score"] == "contrast"


def test_a_report_shows_the_rule_in_every_table_of_methods(run, model_folder, module, monkeypatch):
    from stepvar.report import charts, configurations, results

    monkeypatch.setattr(results, "FRECHET_REPEATS", 3)
    monkeypatch.setattr(charts, "_svg", lambda figure: "<svg></svg>")
    monkeypatch.setattr(configurations, "VARIANTS", {})
    monkeypatch.setattr(configurations, "STRETCHES", (1.0,))
    monkeypatch.setattr(configurations, "RATIOS", (0.5,))
    monkeypatch.setattr(configurations, "OTHERS", {})
    arguments = ("reproduce", "--model", model_folder, "-o", "report", "--minutes", 0.1, "--score", module)
    result = run(*arguments)
    assert result.code == 0, result.stderr
    numbers = json.loads(Path("report/numbers.json").read_text())
    labels = {name: [row["label"] for row in rows] for name, rows in numbers["tables"].items()}
    for table in ("table 1", "equal time", "selection"):
        assert "contrast" in labels[table] and len(labels[table]) == len(set(labels[table]))
    assert "contrast and skips" in labels["table 2"]
    # The same rule of another process is the same run.
    sys.modules.pop("my_rules")
    again = run(*arguments)
    assert again.code == 0 and "steps were done before" in again.stderr
