"""Costs of Switti's transformer, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import ScaleCost
from stepvar.models.common.costs import LayerSizes, transformer_costs
from stepvar.models.switti.transformer import SwittiTransformer


def scale_costs(
    transformer: SwittiTransformer, plan: GenerationPlan, rows: Sequence[int], text_tokens: int
) -> tuple[ScaleCost, ...]:
    """FLOPs and cache bytes of every scale; a multiply-add counts as two.

    Args:
        transformer: The model; only its sizes and its number format are read.
        plan: What will run.
        rows: Batch rows at each scale.
        text_tokens: Text tokens a row attends to.
    """
    config = transformer.config
    width, feed_forwards = config.width, 3 if config.gated_feed_forward else 2
    layer = LayerSizes(
        width,
        # Self-attention has 4 C x C matrices, cross-attention 2 (keys and values are made once).
        6 * width**2 + feed_forwards * width * transformer.hidden_width,
        transformer.compute_dtype.itemsize,
        text=text_tokens,
        remembers=config.causal,
        heads=config.heads,
    )
    # The first scale embeds the text, not codes.
    return transformer_costs(
        plan, rows, layer, lambda scale: width * (config.codes + (config.channels if scale.index else 0))
    )
