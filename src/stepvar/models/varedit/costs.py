"""Costs of VAREdit, from its sizes and a plan alone: Infinity's, and those of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import MemoryPlan, PrefixCost, ScaleCost, Summary
from stepvar.generation.schedule import Scale
from stepvar.models.common.costs import LayerSizes, Prefix, module_bytes, transformer_costs
from stepvar.models.common.strip_decoding import STRIP_BYTES
from stepvar.models.infinity.costs import layer_sizes, outside_weights
from stepvar.models.infinity.published import feed_forward_width
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE

_ALIGNED_LAYERS = (0,)
"""Layers whose queries see the source averaged to their own scale's grid."""


def source_cost(
    transformer: InfinityTransformer,
    plan: GenerationPlan,
    images: int,
    copies: int,
    text_tokens: int,
    repeats: int = 1,
) -> PrefixCost:
    """What the pass over the source costs; a multiply-add counts as two.

    Args:
        transformer: The model; only its sizes and its number format are read.
        plan: What will run; the source has as many tokens as its last scale.
        images: Pictures in the batch.
        copies: Rows of each picture, 2 with guidance.
        text_tokens: Text tokens a row attends to.
        repeats: Pictures of each instruction; one row stands for them, and all keep its keys and values.
    """
    layer, tokens = layer_sizes(transformer, text_tokens), plan[-1].scale.tokens
    sources = images // repeats
    of_layer = 2 * tokens * layer.matrices + 4 * tokens * layer.width * (tokens + text_tokens)
    embedding = 2 * sources * tokens * layer.width * transformer.config.bits
    # The first layer keeps the source, and has room for its averages.
    aligned = len(_ALIGNED_LAYERS)
    stored = 2 * aligned * _plain_bytes(layer) + (plan.depth - aligned) * layer.token_bytes(plan)
    flops = sources * copies * plan.depth * of_layer + embedding
    return PrefixCost("source", tokens, flops, images * copies * tokens * stored, sources * copies)


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


def memory_plan(
    parts: Mapping[str, nn.Module],
    summary: Summary,
    pixels: tuple[int, int],
    images: int,
) -> MemoryPlan:
    """Device memory of an edit, computed from sizes.

    Weights and cache are exact. What a layer, encoder or decoder works on is counted tensor by tensor at its
    widest point; libraries' own workspaces come on top.

    Args:
        parts: "transformer", "vae" and, where there is one, "text_encoder".
        summary: What will run.
        pixels: Height and width of the canvas.
        images: Pictures that run together.
    """
    transformer, vae = parts["transformer"], parts["vae"]
    assert isinstance(transformer, InfinityTransformer) and isinstance(vae, InfinityVAE)
    weights = {name: module_bytes(module) for name, module in parts.items()}
    tokens = [
        entry.tokens(0) * cost.rows for entry, cost in zip(summary.plan.scales, summary.costs, strict=True)
    ]
    if summary.prefix is not None:
        tokens.append(summary.prefix.tokens * summary.prefix.rows)
    working = {
        "text_encoder": 0,
        "transformer": max(tokens) * _layer_bytes(transformer),
        "vae": _autoencoder_bytes(vae, pixels, 1 if vae.use_slicing or vae.use_tiling else images),
    }
    largest = max(module_bytes(block) for block in transformer.blocks)
    used = {name: working[name] for name in weights}
    return MemoryPlan(weights, summary.cache_bytes, used, largest)


def _layer_bytes(transformer: InfinityTransformer) -> int:
    """Of a token: the residual stream in float32, and queries, keys and values, or hidden units twice."""
    config, item = transformer.config, transformer.compute_dtype.itemsize
    hidden = config.hidden_width or feed_forward_width(config.width)
    # Normed values in float32 and cast, beside the stream.
    stream = config.width * (4 + 4 + item)
    attention = 3 * config.width * item + 2 * 2 * config.width * 4
    return stream + max(attention, 2 * hidden * item)


def _autoencoder_bytes(vae: InfinityVAE, pixels: tuple[int, int], images: int) -> int:
    """Of the encoder, one picture at a time, or of the decoder: at full size, whichever holds more.

    A residual block holds its input, that normed, and that activated. The decoder's first block at full size
    has the channels of the level before; in strips one plane of them is stored, beside what it was made from.
    """
    config, places = vae.config, pixels[0] * pixels[1] // vae.config.pixel_block**2
    decoder_item = vae.decoder.conv_in.conv.weight.element_size()
    first, second = (config.base_channels * multiplier for multiplier in config.decoder_multipliers[:2])
    widest = max(first, second)
    if vae.use_tiling:
        decoding = decoder_item * places * (widest + widest // 4) + 4 * STRIP_BYTES
    else:
        decoding = decoder_item * 3 * places * widest * images
    finished = 4 * 3 * pixels[0] * pixels[1] * images
    encoding = 4 * 3 * places * config.base_channels * config.encoder_multipliers[0]
    return max(encoding, decoding) + finished


def _plain_bytes(layer: LayerSizes) -> int:
    """Bytes of a token's keys and values in one layer in the transformer's own number format."""
    return 2 * layer.width * layer.item
