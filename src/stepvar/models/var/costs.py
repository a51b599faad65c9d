"""Costs of VAR's transformer, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import ScaleCost
from stepvar.models.common.costs import LayerSizes, transformer_costs
from stepvar.models.var.transformer import VARTransformer


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
    layer = LayerSizes(width, 4 * width**2 + 2 * width * hidden, item, heads=config.heads)
    # The first scale embeds the class, not codes.
    return transformer_costs(
        plan, rows, layer, lambda scale: width * (config.codes + (config.channels if scale.index else 0))
    )
