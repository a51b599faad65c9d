"""Costs of VAREdit, from its sizes and a plan alone: Infinity's, and those of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import PrefixCost, ScaleCost
from stepvar.generation.schedule import Scale
from stepvar.models.common.costs import LayerSizes, Prefix, transformer_costs
from stepvar.models.infinity.costs import layer_sizes, outside_weights
from stepvar.models.infinity.transformer import InfinityTransformer

_ALIGNED_LAYERS = (0,)
"""Layers whose queries see the source averaged to their own scale's grid."""


def source_cost(
    transformer: InfinityTransformer, plan: GenerationPlan, images: int, copies: int, text_tokens: int
) -> PrefixCost:
    """What the pass over the source costs; a multiply-add counts as two.

    Args:
        transformer: The model; only its sizes and its number format are read.
        plan: What will run; the source has as many tokens as its last scale.
        images: Pictures in the batch.
        copies: Rows of each picture, 2 with guidance.
        text_tokens: Text tokens a row attends to.
    """
    layer, tokens, rows = layer_sizes(transformer, text_tokens), plan[-1].scale.tokens, images * copies
    of_layer = 2 * tokens * layer.matrices + 4 * tokens * layer.width * (tokens + text_tokens)
    embedding = 2 * images * tokens * layer.width * transformer.config.bits
    # The first layer keeps the source, and has room for its averages.
    aligned = len(_ALIGNED_LAYERS)
    stored = 2 * aligned * _plain_bytes(layer) + (plan.depth - aligned) * layer.token_bytes(plan)
    flops = rows * plan.depth * of_layer + embedding
    return PrefixCost("source", tokens, flops, rows * tokens * stored, rows)


def scale_costs(
    transformer: InfinityTransformer, plan: GenerationPlan, rows: Sequence[int], text_tokens: int
) -> tuple[ScaleCost, ...]:
    """FLOPs and cache bytes of every scale, without those of the source; see `infinity.costs.scale_costs`."""
    layer, outside = layer_sizes(transformer, text_tokens), outside_weights(transformer)
    tokens = plan[-1].scale.tokens

    def seen(number: int, scale: Scale) -> int:
        return scale.tokens if number in _ALIGNED_LAYERS else tokens

    costs = transformer_costs(plan, rows, layer, lambda scale: outside, Prefix(tokens, seen))
    # Layers that average are never rounded.
    more = _plain_bytes(layer) - layer.token_bytes(plan)
    added = [
        max(rows) * more * sum(entry.tokens(number) for number in _ALIGNED_LAYERS) for entry in plan.scales
    ]
    return tuple(
        replace(cost, cache_bytes=cost.cache_bytes + extra) for cost, extra in zip(costs, added, strict=True)
    )


def _plain_bytes(layer: LayerSizes) -> int:
    """Bytes of a token's keys and values in one layer in the transformer's own number format."""
    return 2 * layer.width * layer.item
