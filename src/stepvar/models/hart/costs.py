"""Costs of HART's transformer and diffusion head, from their sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepvar.generation.plan import GenerationPlan, ScalePlan
from stepvar.generation.report import ScaleCost
from stepvar.models.common.costs import LayerSizes, transformer_costs
from stepvar.models.hart.transformer import HARTTransformer, gated_width


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
    layer = LayerSizes(
        width,
        4 * width**2 + 3 * width * hidden,
        transformer.compute_dtype.itemsize,
        # All context tokens run in the place of the first scale's only token.
        prompt=config.context_tokens - 1,
        heads=config.heads,
    )
    costs = transformer_costs(plan, rows, layer, lambda scale: width * config.codebook_size)
    sides = (plan.scales[-1].scale.height, plan.scales[-1].scale.width)
    total = []
    for entry, count, cost in zip(plan.scales, rows, costs, strict=True):
        if (entry.scale.height, entry.scale.width) == sides and not entry.skipped:
            # A scale without guidance leaves the head none either.
            copies = min(images * residual_copies, count)
            cost = replace(cost, flops=cost.flops + copies * _residual_flops(transformer, entry, residual))
        total.append(cost)
    return tuple(total)


def _residual_flops(transformer: HARTTransformer, entry: ScalePlan, residual: str) -> int:
    """FLOPs of the diffusion head on one copy of a map."""
    last_layer = len(transformer.blocks) - 1
    tokens = {"all": entry.scale.tokens, "kept": entry.tokens(last_layer), "none": 0}[residual]
    head = transformer.residual_head
    # Time and state are embedded at every step, the hidden states once.
    embedding = head.condition_embedding.weight.numel()
    layers = [head.input, head.output, head.output_modulation]
    for block in head.blocks:
        layers += [block.up, block.down, block.modulation]
    step = sum(layer.weight.numel() for layer in layers)
    return 2 * tokens * (embedding + len(head.schedule) * step)
