"""What Switti's transformer costs, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.report import ScaleCost
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.pruning.plan import GenerationPlan


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
    width = config.width
    matrices = (3 if config.gated_feed_forward else 2) * width * transformer.hidden_width
    item = transformer.compute_dtype.itemsize
    cached = [0] * plan.depth
    costs = []
    for entry, count in zip(plan.scales, rows, strict=True):
        flops = cache = 0
        if not entry.skipped:
            # The first scale embeds the text, not codes.
            embedded = config.codes + (config.channels if entry.scale.index else 0)
            flops += 2 * entry.scale.tokens * width * embedded
        for layer in range(plan.depth):
            tokens = entry.tokens(layer)
            cached[layer] += tokens
            seen = cached[layer] if config.causal else tokens
            # Self-attention has 4 C x C matrices, cross-attention 2 (keys and values are made once).
            flops += 2 * tokens * (6 * width**2 + matrices)
            flops += 4 * tokens * width * (seen + text_tokens)
            cache += 2 * tokens * width * item if config.causal else 0
        costs.append(ScaleCost(count * flops, count * cache, 0 if entry.skipped else count))
    return tuple(costs)
