"""Costs of Infinity's transformer, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import ScaleCost
from stepvar.models.common.costs import LayerSizes, transformer_costs
from stepvar.models.infinity.published import feed_forward_width
from stepvar.models.infinity.transformer import InfinityTransformer


def layer_sizes(transformer: InfinityTransformer, text_tokens: int) -> LayerSizes:
    """What a token meets in a layer, where a row attends to so many text tokens."""
    config = transformer.config
    width, hidden = config.width, config.hidden_width or feed_forward_width(config.width)
    return LayerSizes(
        width,
        # Self-attention has 4 C x C matrices, cross-attention 2 (keys and values are made once).
        6 * width**2 + 2 * width * hidden,
        transformer.compute_dtype.itemsize,
        text=text_tokens,
        heads=config.heads,
    )


def outside_weights(transformer: InfinityTransformer) -> int:
    """Weights that a token meets outside the layers: embedding and head."""
    return transformer.config.width * 3 * transformer.config.bits


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
    outside = outside_weights(transformer)
    return transformer_costs(plan, rows, layer_sizes(transformer, text_tokens), lambda scale: outside)
