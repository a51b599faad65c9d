"""What HART's transformer and its diffusion head cost, from their sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from stepvar.generation.report import ScaleCost
from stepvar.models.hart.transformer import HARTTransformer, gated_width
from stepvar.pruning.plan import GenerationPlan, ScalePlan


def scale_costs(
    transformer: HARTTransformer,
    plan: GenerationPlan,
    rows: Sequence[int],
    images: int = 1,
    residual: str = "all",
    residual_copies: int = 2,
) -> tuple[ScaleCost, ...]:
    """FLOPs and cache bytes of every scale; a multiply-add counts as two.

    Args:
        transformer: The model; only its sizes and its number format are read.
        plan: What will run.
        rows: Batch rows at each scale.
        images: Pictures in the batch.
        residual: Which tokens of the last map the diffusion head runs on: "all", "kept" or "none". A method
            that fills every branch by itself, as FastVAR does, leaves all of them to it even so.
        residual_copies: Rows of the diffusion head for each image: 2 with guidance.
    """
    config = transformer.config
    width, hidden = config.width, config.hidden_width or gated_width(config.width)
    item = transformer.compute_dtype.itemsize
    last = (plan.scales[-1].scale.height, plan.scales[-1].scale.width)
    cached = [0] * plan.depth
    costs = []
    for entry, count in zip(plan.scales, rows, strict=True):
        flops = cache = 0
        # All context tokens run in the place of the first scale's only token.
        context = config.context_tokens - 1 if entry.scale.index == 0 else 0
        if not entry.skipped:
            flops += 2 * entry.scale.tokens * width * config.codebook_size
        for layer in range(plan.depth):
            tokens = entry.tokens(layer) + context
            cached[layer] += tokens
            flops += 2 * tokens * (4 * width**2 + 3 * width * hidden)
            flops += 4 * tokens * width * cached[layer]
            cache += 2 * tokens * width * item
        total = count * flops
        if (entry.scale.height, entry.scale.width) == last and not entry.skipped:
            total += images * residual_copies * _residual_flops(transformer, entry, residual)
        costs.append(ScaleCost(total, count * cache, 0 if entry.skipped else count))
    return tuple(costs)


def _residual_flops(transformer: HARTTransformer, entry: ScalePlan, residual: str) -> int:
    """FLOPs of the diffusion head on one copy of a map."""
    tokens = {"all": entry.scale.tokens, "kept": entry.kept, "none": 0}[residual]
    head = transformer.residual_head
    # Every step is told anew of its time and state, but the hidden states enter once.
    embedding = head.condition_embedding.weight.numel()
    layers = [head.input, head.output, head.output_modulation]
    for block in head.blocks:
        layers += [block.up, block.down, block.modulation]
    step = sum(layer.weight.numel() for layer in layers)
    return 2 * tokens * (embedding + len(head.schedule) * step)
