"""Costs of a transformer of the VAR family, from its sizes and a plan alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from stepvar.generation.int8_cache import SCALE_BYTES
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import ScaleCost
from stepvar.generation.schedule import Scale


def module_bytes(module: nn.Module) -> int:
    """Of a module's weights and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class LayerSizes:
    """What a token meets in a layer.

    Attributes:
        width: Channels of a token, and of its keys and values.
        matrices: Weights of all matrices that it is multiplied by.
        item: Bytes of a number in the cache.
        heads: Of keys and values.
        text: Text tokens that cross-attention reads.
        prompt: Tokens in the sequence besides the maps: they run with the first scale, and every later one
            sees them.
        remembers: Whether a scale sees all earlier ones, and so leaves keys and values behind.
    """

    width: int
    matrices: int
    item: int
    text: int = 0
    prompt: int = 0
    remembers: bool = True
    heads: int = 0

    def token_bytes(self, plan: GenerationPlan) -> int:
        """Bytes that a token's keys and values take in one layer."""
        if plan.int8_cache:
            return 2 * (self.width + SCALE_BYTES * self.heads)
        return 2 * self.width * self.item


@dataclass(frozen=True)
class Prefix:
    """Tokens that run through all layers before the first scale, and stay in the cache.

    Attributes:
        tokens: How many.
        seen: (layer, scale) -> how many keys of theirs the scale's queries see in the layer.
    """

    tokens: int
    seen: Callable[[int, Scale], int]


def transformer_costs(
    plan: GenerationPlan,
    rows: Sequence[int],
    layer: LayerSizes,
    outside: Callable[[Scale], int],
    prefix: Prefix | None = None,
) -> tuple[ScaleCost, ...]:
    """FLOPs and cache bytes of every scale; a multiply-add counts as two.

    Args:
        plan: What will run.
        rows: Batch rows at each scale.
        layer: Sizes of the layers, which are all alike.
        outside: Weights that the tokens of a scale meet outside the layers: embedding and head.
        prefix: What ran before the first scale; only what it adds to the scales is counted.
    """
    seen = [plan.attended(number) for number in range(plan.depth)]
    before = prefix.tokens if prefix else 0
    stored, costs = [before * plan.depth, *plan.stored_tokens(layer.prompt + before)], []
    for index, (entry, count) in enumerate(zip(plan.scales, rows, strict=True)):
        flops = 0 if entry.skipped else 2 * outside(entry.scale) * entry.scale.tokens
        for number in range(plan.depth):
            tokens = entry.tokens(number) + (layer.prompt if index == 0 else 0)
            keys = seen[number][index] + layer.prompt if layer.remembers else tokens
            keys += prefix.seen(number, entry.scale) if prefix else 0
            flops += 2 * tokens * layer.matrices + 4 * tokens * layer.width * (keys + layer.text)
        cache = (stored[index + 1] - stored[index]) * layer.token_bytes(plan) if layer.remembers else 0
        # The room is allocated once, for as many rows as any scale has.
        costs.append(ScaleCost(count * flops, max(rows) * cache, 0 if entry.skipped else count))
    return tuple(costs)
