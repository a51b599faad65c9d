"""A whole report of every model in miniature: what a model cannot run is left out and named."""

from __future__ import annotations

import json

import pytest

from stepvar.report import charts, configurations, results
from stepvar.report.protocol import Protocol
from stepvar.report.run import reproduce

LEAST = Protocol(
    batch=2, central_blocks=1, main_blocks=1, ablation_blocks=1, rounds=1, analysis_pictures=1, gallery=1,
    diversity_prompts=1, diversity_seeds=2,
)  # fmt: skip


def make_hart():
    from tiny_hart import make_pipeline

    return make_pipeline()


def make_infinitystar():
    from tiny_star import make_star_pipeline

    return make_star_pipeline(grids=[[1, 1], [2, 2], [3, 3], [4, 4]])


def make_switti():
    from tiny_switti import make_switti_pipeline

    return make_switti_pipeline()


def make_var():
    from tiny_var import make_var_pipeline

    return make_var_pipeline()


@pytest.mark.parametrize("make", [make_hart, make_infinitystar, make_switti, make_var])
def test_a_report_of_every_model(make, tmp_path, monkeypatch):
    # What is the same for all models is left out: most configurations, and the drawing of charts.
    monkeypatch.setattr(results, "FRECHET_REPEATS", 3)
    monkeypatch.setattr(charts, "_svg", lambda figure: "<svg></svg>")
    monkeypatch.setattr(configurations, "VARIANTS", {})
    monkeypatch.setattr(configurations, "STRETCHES", (0.75, 1.0))
    monkeypatch.setattr(configurations, "RATIOS", (0.5,))
    outcome = reproduce(make(), tmp_path / "report", protocol=LEAST)
    json.dumps(outcome.numbers, allow_nan=False)
    rows = {name: [row["label"] for row in found] for name, found in outcome.numbers["tables"].items()}
    assert {"StepVAR", "FastVAR", "random"} <= set(rows["table 1"])
    assert {"texture", "structure+texture"} <= set(rows["selection"]) and len(rows["recovery"]) >= 5
    page = outcome.page.read_text("utf-8")
    scenes = "scene" in outcome.numbers["tables"]["table 1"][0]
    assert scenes == (make is make_infinitystar) == ("<th>scene score, %</th>" in page)
    if make is make_switti:
        assert "Not measured: ScaleKV, 6 %. " in page and "ScaleKV, 6 %" not in rows["others"]


def test_a_model_that_edits_pictures_is_refused_before_anything_is_written(tmp_path):
    from tiny_varedit import make_varedit_pipeline

    with pytest.raises(ValueError, match="A report draws from prompts alone, and VAREditPipeline edits"):
        reproduce(make_varedit_pipeline(), tmp_path / "report", protocol=LEAST)
    assert list(tmp_path.iterdir()) == []
