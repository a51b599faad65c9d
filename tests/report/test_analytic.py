"""Costs of published models, from their sizes alone."""

from __future__ import annotations

import pytest
import torch

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.stepvar import StepVAR
from stepvar.report.published_costs import PUBLISHED, published_costs, scale_flops


@pytest.mark.parametrize(("place", "size"), [(0, "2B"), (1, "8B")])
def test_infinity_costs_what_its_own_module_says(place, size):
    with torch.device("meta"):
        transformer = InfinityTransformer.published(size)
    schedule = transformer.size_table.at_aspect(1.0, "1M")
    depth = len(transformer.blocks)
    model = PUBLISHED[place]
    for plan, ratios in (
        (GenerationPlan.dense(ScaleSchedule(tuple(schedule)), depth), {}),
        (StepVAR(ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1)).plan(schedule, depth), model.ratios),
    ):
        exact = [cost.flops for cost in scale_costs(transformer, plan, [2] * len(schedule), 0)]
        # The head is left out here: less than three parts in a thousand.
        assert scale_flops(model, ratios) == pytest.approx(exact, rel=0.003)


def test_published_numbers():
    costs = {cost.name.partition(",")[0]: cost for cost in published_costs()}
    assert set(costs) == {"Infinity-2B", "Infinity-8B", "HART", "InfinityStar-8B"}
    assert all(cost.late_share > 0.75 for cost in costs.values())
    assert costs["Infinity-2B"].saving > 3.0 and 1.2 < costs["HART"].saving < 2.5
    star = costs["InfinityStar-8B"]
    assert star.scales[-4:] == ["12x21", "18x32", "24x43", "30x53"]
    # Of 8788 TFLOP for five seconds of 480p, the last scale takes 27.0 % and the two before 28.9 and 19.9 %.
    assert [flops / 8788e12 for flops in star.dense[-3:]] == pytest.approx([0.199, 0.289, 0.27], abs=0.002)
