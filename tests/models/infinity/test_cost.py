"""Planned FLOPs and cache bytes against what a run really does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepvar.generation.loop import plan_generation
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, draw, make_transformer

PLANS = [
    None,
    StepVAR(ratios={-2: 0.5, -1: 0.75}),
    StepVAR(ratios={-2: 0.4}, skip=(-1,)),
    FastVAR(ratios={-2: 0.5, -1: 0.75}, dense_end=1),
]
TEXT = 5


@pytest.fixture(scope="module")
def model():
    return make_transformer(depth=4, width=128, heads=4)


@pytest.mark.parametrize("pruning", PLANS)
@pytest.mark.parametrize("guidance", [1.0, 3.0, [3.0, 3.0, 3.0, 3.0, 1.0, 1.0]])
def test_planned_flops_are_what_runs_scale_by_scale(model, pruning, guidance):
    done = []
    # The plain implementation of attention is the one whose products the counter sees.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        drawing = draw(
            model,
            guidance=guidance,
            pruning=pruning,
            observer=lambda report: done.append(counter.get_total_flops()),
        )
    rows = [report.rows for report in drawing.reports]
    plan = plan_generation(pruning, SMALL, 4)
    planned = [cost.flops for cost in scale_costs(model, plan, rows, TEXT)]
    ran = [after - before for before, after in pairwise(done)]
    for scale in range(2, 6):
        if plan[scale].skipped:
            assert planned[scale] == ran[scale - 1] == 0
        else:
            # Scores add a little that the plan does not count.
            allowed = 0.05 if plan[scale].prunes else 0.01
            assert planned[scale] == pytest.approx(ran[scale - 1], rel=allowed)
    assert sum(planned) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("pruning", PLANS)
@pytest.mark.parametrize("guidance", [1.0, 3.0, [3.0, 3.0, 3.0, 3.0, 1.0, 1.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_cache_bytes_are_exact(pruning, guidance, dtype):
    half = make_transformer(depth=4).to(dtype)
    drawing = draw(half, guidance=guidance, pruning=pruning, seeds=[0, 1, 2])
    rows = [report.rows for report in drawing.reports]
    costs = scale_costs(half, plan_generation(pruning, SMALL, 4), rows, TEXT)
    assert sum(cost.cache_bytes for cost in costs) == drawing.result.cache_bytes
    item = 4 if dtype == torch.float32 else 2
    for cost, layers, report in zip(costs, drawing.layer_tokens, drawing.reports, strict=True):
        stored = [report.plan.tokens(layer) for layer in range(4)]
        assert cost.cache_bytes == rows[0] * sum(stored) * 64 * 2 * item
        if not isinstance(pruning, FastVAR):
            assert layers == stored, "FastVAR's hidden states stay dense, the others' do not"
        assert cost.rows == report.rows


@pytest.fixture(scope="module")
def largest():
    with torch.device("meta"):
        return InfinityTransformer.published("2B")


def last_scale_flops(layers: int, tokens: int, cached: int) -> int:
    """FLOPs of 2B's last scale in some of its layers, for two rows and 16 text tokens."""
    matrices = 6 * 2048**2 + 2 * 2048 * 8192
    return 2 * layers * (2 * tokens * matrices + 4 * tokens * 2048 * (cached + 16))


def test_costs_of_the_2b_model_at_one_megapixel(largest):
    schedule = SizeTable.published().schedule(1.0, "1M")
    costs = scale_costs(largest, plan_generation(None, schedule, 32), [2] * 13, 16)
    outside = 2 * 2 * 4096 * 2048 * 3 * 32
    assert sum(cost.cache_bytes for cost in costs) == 2 * 10521 * 32 * 2048 * 2 * 4
    assert costs[-1].flops == outside + last_scale_flops(32, 4096, 10521)
    assert 0.4 < costs[-1].flops / sum(cost.flops for cost in costs) < 0.6, "the last scale is half of all"


def test_costs_of_the_2b_model_with_its_last_scales_pruned(largest):
    schedule = SizeTable.published().schedule(1.0, "1M")
    pruning = StepVAR(ratios={48: 0.5, 64: 0.75})
    costs = scale_costs(largest, plan_generation(pruning, schedule, 32), [2] * 13, 16)
    outside = 2 * 2 * 4096 * 2048 * 3 * 32
    dense, pruned = last_scale_flops(3, 4096, 10521), last_scale_flops(29, 1024, 4121 + 1152 + 1024)
    assert costs[-1].flops == outside + dense + pruned
    assert costs[-1].cache_bytes == 2 * (3 * 4096 + 29 * 1024) * 2048 * 2 * 4
