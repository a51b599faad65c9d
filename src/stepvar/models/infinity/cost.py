"""What Infinity's transformer costs, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.cascade import Cascade, cascade_costs
from stepvar.generation.guidance import Guidance
from stepvar.generation.report import ScaleCost, Summary
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.cost import LayerSizes, transformer_costs
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
    width, hidden = config.width, feed_forward_width(config.width)
    layer = LayerSizes(
        width,
        # Self-attention has 4 C x C matrices, cross-attention 2 (keys and values are made once).
        6 * width**2 + 2 * width * hidden,
        transformer.compute_dtype.itemsize,
        text=text_tokens,
    )
    return transformer_costs(plan, rows, layer, lambda scale: width * 3 * config.bits)


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
