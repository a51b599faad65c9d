"""Costs of InfinityStar, from its sizes and a plan alone: operations, cache, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from stepvar.generation.cache import Span
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import MemoryPlan, ScaleCost
from stepvar.models.common.costs import module_bytes
from stepvar.models.infinitystar.schedules import VideoSchedule
from stepvar.models.infinitystar.session import layer_windows
from stepvar.models.infinitystar.tiling import spans
from stepvar.models.infinitystar.transformer import TOKENS_AT_ONCE, InfinityStarTransformer
from stepvar.models.infinitystar.vae import DECODER_CHUNK, InfinityStarVAE


def scale_costs(
    transformer: InfinityStarTransformer,
    schedule: VideoSchedule,
    plan: GenerationPlan,
    rows: Sequence[int],
    prefix: Sequence[int],
    videos: int = 1,
) -> tuple[ScaleCost, ...]:
    """FLOPs of every step, and the cache bytes it adds to what is needed; a multiply-add counts as two.

    The text prefix itself is left out: one pass of a hundred tokens. Videos are drawn one after the other, so
    all of them compute, and only one of them is in the cache.

    Args:
        transformer: The model; only its sizes and its number format are read.
        schedule: The steps.
        plan: What will run.
        rows: Batch rows of one video at each step.
        prefix: Tokens of the text, and of each condition.
        videos: How many are drawn.
    """
    config = transformer.config
    key_width = config.key_heads * transformer.head_dim
    # Queries and output, keys and values, and the three matrices of the feed-forward.
    per_token = 2 * config.width * (2 * config.width + 2 * key_width + 3 * config.hidden_width)
    flops = [0] * len(schedule)
    layers = _seen_by_layer(schedule, plan, prefix)
    for pairs in layers:
        for span, seen in pairs:
            if span.step >= 0:
                flops[span.step] += span.tokens * (per_token + 4 * config.width * seen)
    token = max(rows) * _token_bytes(transformer)
    costs, before = [], 0
    for entry, count in zip(plan.scales, rows, strict=True):
        index = entry.scale.index
        head = 0 if entry.skipped else 4 * entry.scale.tokens * config.width * schedule[index].bits
        room = _room(layers, index)
        added, before = token * (room - before), room
        computed = videos * count * (flops[index] + head)
        costs.append(ScaleCost(computed, added, 0 if entry.skipped else count))
    return tuple(costs)


def memory_plan(
    transformer: InfinityStarTransformer,
    tokenizer: InfinityStarVAE,
    text_encoder: nn.Module | None,
    schedule: VideoSchedule,
    plan: GenerationPlan,
    copies: int,
    prefix: Sequence[int],
    decode_chunk: int = DECODER_CHUNK,
    decode_tile: int | None = None,
) -> MemoryPlan:
    """Device memory of a generation, computed from sizes.

    Weights and cache are exact. What a layer or the decoder works on is counted tensor by tensor at its
    widest point, as the code holds it; libraries' own workspaces come on top.

    Args:
        copies: Rows of one video: 2 with guidance.
        prefix: Tokens of the text, and of each condition.
        decode_chunk, decode_tile: As in a call of the pipeline.
        Others: Parts of the pipeline, and what will run.
    """
    parts = {"text_encoder": text_encoder, "transformer": transformer, "vae": tokenizer}
    weights = {name: module_bytes(module) for name, module in parts.items() if module is not None}
    working = {
        "text_encoder": 0,
        "transformer": _layer_bytes(transformer, plan, copies),
        "vae": _decoder_bytes(tokenizer, schedule, decode_chunk, decode_tile),
    }
    room = _room(_seen_by_layer(schedule, plan, prefix), len(schedule) - 1)
    cache = copies * room * _token_bytes(transformer)
    largest = max(module_bytes(block) for block in transformer.blocks)
    return MemoryPlan(weights, cache, {name: working[name] for name in weights}, largest)


def _token_bytes(transformer: InfinityStarTransformer) -> int:
    """Of one token's keys and values in one layer."""
    return 2 * transformer.config.key_heads * transformer.head_dim * transformer.compute_dtype.itemsize


def _seen_by_layer(
    schedule: VideoSchedule, plan: GenerationPlan, prefix: Sequence[int]
) -> list[list[tuple[Span, int]]]:
    """What each layer makes, and how many keys it sees then."""
    windows = layer_windows(schedule, plan, prefix)
    return [list(zip(window.spans, window.seen(), strict=True)) for window in windows]


def _room(layers: Sequence[Sequence[tuple[Span, int]]], step: int) -> int:
    """Tokens that the cache needs room for up to a step: every layer's own, and the shared workspace."""
    kept, passing = (
        [
            max((seen for span, seen in pairs if span.kept is wanted and span.step <= step), default=0)
            for pairs in layers
        ]
        for wanted in (True, False)
    )
    return sum(kept) + max(passing)


def _layer_bytes(transformer: InfinityStarTransformer, plan: GenerationPlan, copies: int) -> int:
    """Most that a layer holds: residual stream old and new in float32 and a branch, or queries and more."""
    config = transformer.config
    item = transformer.compute_dtype.itemsize
    tokens = copies * max(entry.tokens(0) for entry in plan.scales)
    wide = tokens * config.width
    added = wide * (4 + item + 4)
    attention = wide * (4 + 3 * item) + 2 * tokens * config.key_heads * transformer.head_dim * item
    piece = min(tokens, TOKENS_AT_ONCE) * max(3 * config.hidden_width * item, 6 * config.width * 4)
    return max(added, attention) + piece


def _decoder_bytes(tokenizer: InfinityStarVAE, schedule: VideoSchedule, chunk: int, tile: int | None) -> int:
    """A chunk of a tile at the decoder's widest point, what all tiles keep, and the finished frames."""
    item = torch.finfo(next(tokenizer.decoder.parameters()).dtype).bits // 8
    sides = schedule.position_grid
    # Without tiles, the whole frame is the only one.
    parts = [[(0, side)] if tile is None else spans(side, tile, tile // 4) for side in sides]
    lengths = [[stop - start for start, stop in axis] for axis in parts]
    pixels_of_cell = (tokenizer.pixels_per_cell // tokenizer.config.pixel_block) ** 2
    largest, together = (
        pixels_of_cell * math.prod(measure(axis) for axis in lengths) for measure in (max, sum)
    )
    channels = tokenizer.config.channels
    # The first chunk is the longest; of its first latent frame only two frames are made, and averaged.
    count = schedule.latent_frames
    frames = 4 * min(count, chunk + 2 - count % 2) - 2
    # At full size the last norm holds its input, its result, a modulation and two products.
    widest = 5 * channels[0] * frames * largest
    convolutions_of_level = (1, *(7,) * (len(channels) - 3), 17)
    kept = 2 * sum(
        count * together // 4**level * convolutions
        for level, (count, convolutions) in enumerate(zip(channels[:-1], convolutions_of_level, strict=True))
    )
    finished = 3 * tokenizer.config.pixel_block**2 * frames * together
    return item * (widest + kept) + torch.float32.itemsize * finished
