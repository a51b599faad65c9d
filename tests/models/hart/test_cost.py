"""What the published HART costs, as docs/hart.md tells it; the pipeline's tests compare plans with runs."""

from __future__ import annotations

import pytest
import torch

from stepvar.generation.loop import plan_generation
from stepvar.models.hart.costs import scale_costs
from stepvar.models.hart.presets import PRESETS
from stepvar.models.hart.transformer import HARTTransformer


@pytest.mark.parametrize(
    ("preset", "residual", "last", "whole"),
    [
        (None, "all", 27.45, 48.83),
        ("paper", "all", 10.53, 26.92),
        ("paper", "kept", 7.20, 23.59),
        ("paper", "none", 6.09, 22.48),
        ("fastvar", "all", 8.99, 24.93),
    ],
)
def test_published_costs_in_teraflops(preset, residual, last, whole):
    with torch.device("meta"):
        model = HARTTransformer.published()
    method = PRESETS[preset].method if preset else None
    plan = plan_generation(method, model.schedule, 24)
    costs = scale_costs(model, plan, [2] * 14, 1, residual)
    assert costs[-1].flops / 1e12 == pytest.approx(last, abs=0.005)
    assert sum(cost.flops for cost in costs) / 1e12 == pytest.approx(whole, abs=0.005)
    tokens = 9750 if preset is None else 9750 - 1152 - 3072
    layers = 24 if preset != "paper" else 22
    expected = tokens * layers + (9750 * 2 if preset == "paper" else 0)
    assert sum(cost.cache_bytes for cost in costs) == expected * 2 * 2 * 1536 * 4
