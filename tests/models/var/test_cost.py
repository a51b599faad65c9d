"""Planned FLOPs and cache bytes of VAR against what a run really does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepvar.generation.loop import plan_generation
from stepvar.models.var.costs import scale_costs
from stepvar.models.var.transformer import VARTransformer
from stepvar.pruning.stepvar import StepVAR
from tiny_var import draw_var, make_var

PLANS = [None, StepVAR(ratios={-2: 0.5, -1: 0.75}), StepVAR(ratios={-2: 0.4}, skip=(-1,))]


@pytest.fixture(scope="module")
def model():
    return make_var(depth=4, width=128, heads=4)


@pytest.mark.parametrize("pruning", PLANS)
@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_planned_flops_are_what_runs_scale_by_scale(model, pruning, strength):
    done = []
    # The plain implementation of attention is the one whose products the counter sees.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        drawing = draw_var(
            model,
            strength=strength,
            pruning=pruning,
            observer=lambda report: done.append(counter.get_total_flops()),
        )
    rows = [report.rows for report in drawing.reports]
    plan = plan_generation(pruning, model.schedule, 4)
    planned = [cost.flops for cost in scale_costs(model, plan, rows)]
    ran = [after - before for before, after in pairwise(done)]
    for scale in range(2, 6):
        if plan[scale].skipped:
            assert planned[scale] == ran[scale - 1] == 0
        else:
            # Scores and the quantiser's convolution add a little that the plan does not count.
            allowed = 0.05 if plan[scale].prunes else 0.02
            assert planned[scale] == pytest.approx(ran[scale - 1], rel=allowed)


@pytest.mark.parametrize("pruning", PLANS)
@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_planned_cache_bytes_are_exact(model, pruning, strength):
    drawing = draw_var(model, [0, 1], [0, 1], strength=strength, pruning=pruning)
    rows = [report.rows for report in drawing.reports]
    costs = scale_costs(model, plan_generation(pruning, model.schedule, 4), rows)
    assert sum(cost.cache_bytes for cost in costs) == drawing.result.cache_bytes


def test_costs_of_the_512_pixel_model():
    with torch.device("meta"):
        largest = VARTransformer.published("d36")
    costs = scale_costs(largest, plan_generation(None, largest.schedule, 36), [2] * 10)
    matrices = 12 * 2304**2
    layers = 36 * (2 * 1024 * matrices + 4 * 1024 * 2304 * 2240)
    assert costs[-1].flops == 2 * (layers + 2 * 1024 * 2304 * (4096 + 32))
    assert sum(cost.cache_bytes for cost in costs) == 2 * 2240 * 36 * 2304 * 2 * 4
