"""What Infinity's transformer costs, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.cascade import Cascade, cascade_costs
from stepvar.generation.guidance import Guidance
from stepvar.generation.report import ScaleCost, Summary
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.transformer import InfinityTransformer, feed_forward_width
from stepvar.models.pipeline import rows_per_scale
from stepvar.pruning.base import PruningMethod, plan_generation
from stepvar.pruning.plan import GenerationPlan


def scale_costs(
    transformer: InfinityTransformer, plan: GenerationPlan, rows: Sequence[int], text_tokens: int
) -> tuple[ScaleCost, ...]:
    """FLOPs and cache bytes of every scale; a multiply-add counts as two.

    Args:
        transformer: The model; only its sizes and its number format are read.
        plan: What will run.
        rows: Batch rows at each scale.
        text_tokens: Text tokens a row attends to.
    """
    config = transformer.config
    width, hidden = config.width, config.hidden_width or feed_forward_width(config.width)
    item = transformer.compute_dtype.itemsize
    attended = [plan.attended(layer) for layer in range(plan.depth)]
    stored, costs = [0, *plan.stored_tokens()], []
    for index, (entry, count) in enumerate(zip(plan.scales, rows, strict=True)):
        flops = 0
        if not entry.skipped:
            flops += 2 * entry.scale.tokens * width * 3 * config.bits
        for layer in range(plan.depth):
            tokens = entry.tokens(layer)
            # Self-attention has 4 C x C matrices, cross-attention 2 (keys and values are made once).
            flops += 2 * tokens * (6 * width**2 + 2 * width * hidden)
            flops += 4 * tokens * width * (attended[layer][index] + text_tokens)
        cache = 2 * (stored[index + 1] - stored[index]) * width * item
        # The room is allocated once, for as many rows as any scale has.
        costs.append(ScaleCost(count * flops, max(rows) * cache, 0 if entry.skipped else count))
    return tuple(costs)


def summarise(
    transformer: InfinityTransformer,
    schedule: ScaleSchedule,
    method: PruningMethod | None,
    guidance: Guidance,
    images: int,
    text_tokens: int,
    cascade: Cascade | None = None,
) -> Summary:
    """What a method will run and what that costs, against the dense run (of the drafter, in a cascade)."""

    def costs(plan: GenerationPlan, model: InfinityTransformer) -> tuple[ScaleCost, ...]:
        rows = rows_per_scale(guidance, images, 2 if guidance.active else 1, plan)
        return scale_costs(model, plan, rows, text_tokens)

    plan = plan_generation(method, schedule, len(transformer.blocks))
    planned, usual = costs(plan, transformer), transformer
    if cascade is not None:
        usual = cascade.drafter.transformer
        draft = cascade.draft.plan(schedule, len(usual.blocks))
        planned = cascade_costs(costs(draft, usual), planned, cascade.scales)
    return Summary(plan, planned, costs(GenerationPlan.dense(schedule, len(usual.blocks)), usual))
