"""Planned FLOPs and cache bytes of Switti against what a run really does."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepvar.generation.loop import plan_generation
from stepvar.models.switti.costs import scale_costs
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.pruning.stepvar import StepVAR
from tiny_switti import draw_switti, make_switti

PLANS = [None, StepVAR(ratios={-2: 0.5, -1: 0.75}), StepVAR(ratios={-2: 0.4}, skip=(-1,))]
TEXT = 5


@pytest.mark.parametrize("pruning", PLANS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_planned_flops_and_cache_bytes(pruning, causal, gated):
    model = make_switti(depth=4, width=96, causal=causal, gated_feed_forward=gated)
    # What is computed once, before the loop, is what a run of the first scale alone has too.
    seen = []
    with sdpa_kernel(SDPBackend.MATH):
        for plan in (pruning, StepVAR(skip=(-5, -4, -3, -2, -1))):
            with FlopCounterMode(display=False) as counter:
                drawing = draw_switti(model, lengths=(TEXT,), weights=(1.0,) * 6, pruning=plan)
            rows = [report.rows for report in drawing.reports]
            costs = scale_costs(model, plan_generation(plan, model.schedule, 4), rows, TEXT)
            seen.append((counter.get_total_flops(), sum(cost.flops for cost in costs)))
            assert sum(cost.cache_bytes for cost in costs) == drawing.result.cache_bytes
    (ran, planned), (ran_first, planned_first) = seen
    assert ran - ran_first == pytest.approx(planned - planned_first, rel=0.04)


def test_costs_of_the_1024_pixel_model():
    with torch.device("meta"):
        largest = SwittiTransformer.published("1024")
    plan = plan_generation(None, largest.schedule, 30)
    costs = scale_costs(largest, plan, [2] * 11 + [1] * 3, 16)
    layers = 30 * (2 * 4096 * (6 * 1920**2 + 3 * 1920 * 5120) + 4 * 4096 * 1920 * (4096 + 16))
    assert costs[-1].flops == layers + 2 * 4096 * 1920 * (4096 + 32)
    assert sum(cost.cache_bytes for cost in costs) == 0
