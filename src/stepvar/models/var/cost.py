"""What VAR's transformer costs, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.report import ScaleCost
from stepvar.models.var.transformer import VARTransformer
from stepvar.pruning.plan import GenerationPlan


def scale_costs(
    transformer: VARTransformer, plan: GenerationPlan, rows: Sequence[int]
) -> tuple[ScaleCost, ...]:
    """FLOPs and cache bytes of every scale; a multiply-add counts as two.

    Args:
        transformer: The model; only its sizes and its number format are read.
        plan: What will run.
        rows: Batch rows at each scale.
    """
    config = transformer.config
    width, hidden = config.width, config.feed_forward_width or 4 * config.width
    item = transformer.compute_dtype.itemsize
    cached = [0] * plan.depth
    costs = []
    for entry, count in zip(plan.scales, rows, strict=True):
        flops = cache = 0
        if not entry.skipped:
            # The first scale embeds the class, not codes.
            embedded = config.codes + (config.channels if entry.scale.index else 0)
            flops += 2 * entry.scale.tokens * width * embedded
        for layer in range(plan.depth):
            tokens = entry.tokens(layer)
            cached[layer] += tokens
            flops += 2 * tokens * (4 * width**2 + 2 * width * hidden)
            flops += 4 * tokens * width * cached[layer]
            cache += 2 * tokens * width * item
        costs.append(ScaleCost(count * flops, count * cache, 0 if entry.skipped else count))
    return tuple(costs)
