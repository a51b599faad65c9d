"""Schedules, living tokens, and the reports that speak of them."""

from __future__ import annotations

import json

import pytest
import torch

from stepvar.generation.loop import plan_generation
from stepvar.generation.report import Report, ScaleCost, Summary
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens, gather_tokens
from stepvar.models.infinity.costs import scale_costs
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, draw

PLAN = StepVAR(ratios={-2: 0.5}, skip=(-1,))


def test_a_schedule_counts_its_tokens_and_knows_its_end():
    assert SMALL.tokens == 1 + 4 + 12 + 30 + 63 + 120 == sum(scale.tokens for scale in SMALL)
    assert SMALL.final == SMALL[-1] == Scale(5, 12, 10)
    assert SMALL.position_grid == (12, 10), "by default the last grid"
    prefix = ScaleSchedule.from_grids([(1, 1), (2, 2)], position_grid=(12, 10))
    assert prefix.position_grid == (12, 10)
    assert [str(scale) for scale in prefix] == ["1x1", "2x2"]
    assert str(Scale(0, 3, 4, frames=2)) == "2x3x4"
    assert Scale(0, 3, 4, frames=2).tokens == 24


def test_an_empty_schedule_is_refused():
    with pytest.raises(ValueError, match="at least one scale"):
        ScaleSchedule.from_grids([])


def test_narrowing_tokens_takes_their_places_along():
    scale = Scale(0, 3, 4)
    places = torch.arange(12).view(1, 12, 1)
    tokens = Tokens(scale, places)
    assert tokens.count == 12
    once = tokens.narrow(torch.tensor([[1, 5, 7, 11], [0, 2, 4, 6]]))
    assert once.count == 4
    assert once.positions.squeeze(-1).tolist() == [[1, 5, 7, 11], [0, 2, 4, 6]]
    twice = once.narrow(torch.tensor([[0, 3], [1, 2]]))
    assert twice.index.tolist() == twice.positions.squeeze(-1).tolist() == [[1, 11], [2, 4]]
    assert tokens.index is None, "the wide tokens stay as they were"


def test_gathering_picks_per_row():
    values = torch.arange(24.0).view(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([values[0, [3, 0]], values[1, [1, 1]]])
    assert torch.equal(gather_tokens(values, index), expected)
    assert torch.equal(gather_tokens(values[:1], index), values[0][index])


def summary(transformer) -> Summary:
    rows = [2] * len(SMALL)
    plan, dense = plan_generation(PLAN, SMALL, 3), plan_generation(None, SMALL, 3)
    return Summary(plan, scale_costs(transformer, plan, rows, 8), scale_costs(transformer, dense, rows, 8))


def test_a_summary_names_skips_and_kept_tokens(transformer):
    told = summary(transformer)
    assert told.tokens == 1 + 4 + 12 + 30 + 32
    assert told.dense_tokens == SMALL.tokens
    assert told.flops < told.dense_flops
    lines = str(told).splitlines()
    assert "skipped" in lines[6]
    assert lines[5].split()[:3] == ["9x7", "63", "32"]
    data = json.loads(json.dumps(told.as_json()))
    assert [entry["kept"] for entry in data["scales"]] == [1, 4, 12, 30, 32, 0]
    assert [entry["skipped"] for entry in data["scales"]] == [False] * 5 + [True]
    assert data["scales"][4]["pruned_layers"] == [1, 3]
    assert data["flops"] == sum(entry["flops"] for entry in data["scales"])
    assert data["cache_bytes"] == sum(entry["cache_bytes"] for entry in data["scales"])
    assert data["scales"][5] | {"flops": 0, "cache_bytes": 0, "rows": 0} == data["scales"][5]


def test_the_summary_equals_what_runs(transformer):
    told, drawing = summary(transformer), draw(transformer, pruning=PLAN)
    assert told.cache_bytes == drawing.result.cache_bytes
    assert [entry.kept for entry in told.plan.scales] == [report.plan.kept for report in drawing.reports]
    assert [cost.rows for cost in told.costs] == [report.rows for report in drawing.reports]


def test_a_report_tells_tokens_and_skips_as_json(transformer):
    drawing = draw(transformer, pruning=PLAN)
    report = Report(drawing.reports, {"text": 0.5, "scales": 1.0}, drawing.result.cache_bytes, 7, [3])
    data = json.loads(json.dumps(report.as_json()))
    assert data["tokens"] == {"kept": 79, "total": 230}
    assert data["seconds"] == 1.5
    assert data["seeds"] == [3]
    assert [entry["skipped"] for entry in data["scales"]] == [False] * 5 + [True]
    assert data["scales"][5]["rows"] == data["scales"][5]["kept"] == 0


def test_costs_add_up():
    plan = plan_generation(None, SMALL, 1)
    costs = tuple(ScaleCost(10, 3, 1) for _ in SMALL)
    assert (Summary(plan, costs, costs).flops, Summary(plan, costs, costs).cache_bytes) == (60, 18)


@pytest.mark.parametrize("grid", [(0, 3), (3, -1), (-2, -2)])
def test_an_empty_token_map_is_refused(grid):
    with pytest.raises(ValueError, match="every side must be 1 or more"):
        ScaleSchedule.from_grids([grid])
    with pytest.raises(ValueError, match="every side must be 1 or more"):
        Scale(0, 3, 3, frames=0)


@pytest.mark.parametrize("grids", [[(1, 1), (4, 4), (1, 1)], [(1, 1), (2, 4), (4, 3)], [(2, 2), (0, 0)]])
def test_scales_go_from_coarse_to_fine(grids):
    with pytest.raises(ValueError, match="scales go from coarse to fine"):
        ScaleSchedule.from_grids(grids)


def test_scales_may_repeat():
    assert ScaleSchedule.from_grids([(1, 1), (1, 1), (2, 3)]).tokens == 8
