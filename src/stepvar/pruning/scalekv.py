"""ScaleKV: layers that attend locally forget most keys and values between two scales.

Source: "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression",
arXiv 2505.19602; budgets and selection as in its authors' code (StargazerX0/ScaleKV, scale_kv.py and
budgets/*.json). One thing differs: that code scores with queries before their bias, normalisation, scale and
rotation, although the keys have been rotated; here the queries are those that attention uses.

It saves memory, not FLOPs of the matrices: the tokens of a scale all run, and all see each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.attention import attention
from stepvar.generation.cache import Cache, LayerCache
from stepvar.generation.fields import require_fields
from stepvar.generation.frozen import FrozenMapping
from stepvar.generation.plan import GenerationPlan, ScalePlan, find_scale
from stepvar.generation.pruner import NestedPruner, Pruner, PruningMethod, plan_generation, start_pruner
from stepvar.generation.schedule import ScaleSchedule

WINDOW = 16
"""Tokens of the current scale that ask for all: they choose what is kept, and are kept themselves."""

KERNEL = 5
"""Neighbours in the cache that a high score lifts along with a token."""


CAPACITY = 650
"""Tokens that a layer may always hold under the published budgets."""


@dataclass(frozen=True)
class Budget:
    """What layers may remember when a scale starts.

    Attributes:
        refiner: Tokens of the layers that attend locally.
        drafter: Tokens of those that attend broadly.
        drafters: The latter, by index.
    """

    refiner: int
    drafter: int = 0
    drafters: tuple[int, ...] = ()


PUBLISHED: dict[str, dict[int, Budget]] = {
    "2B": {
        -5: Budget(632, 920, (0, 23)),
        -4: Budget(594, 1490, (0, 23)),
        -3: Budget(526, 2510, (0, 23)),
        -2: Budget(420, 4100, (0, 23)),
        -1: Budget(465, 6385, (0,)),
    },
    "8B": {
        -5: Budget(629, 909, (0, 1, 2)),
        -4: Budget(584, 1464, (0, 1, 2)),
        -3: Budget(503, 2463, (0, 1, 2)),
        -2: Budget(374, 4054, (0, 1, 2)),
        -1: Budget(200, 6200, (0, 1, 2)),
    },
}
"""The authors' budgets of "10 %" for Infinity's 13 scales at one megapixel, by name of the coming scale."""


@dataclass(frozen=True)
class ScaleKV:
    """Cuts each layer's keys and values down to a budget before the next scale.

    Attributes:
        budgets: By name of the coming scale; see `PUBLISHED`.
        share: For scales without a budget: share of the whole schedule's tokens that a layer may remember;
            None lets it remember everything.
        drafters: Layers that `share` does not limit, by index.
        capacity: Nothing is forgotten while a layer holds no more tokens than this; by default 650 with
            budgets, as the authors have it, and 0 with a share alone.
        pruning: A method to prune tokens with besides; None for none.

    Raises:
        ValueError: When a field is out of range, or nothing is limited.
    """

    budgets: Mapping[int, Budget] = field(default_factory=dict)
    share: float | None = None
    drafters: tuple[int, ...] = (0,)
    capacity: int | None = None
    pruning: PruningMethod | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        object.__setattr__(self, "budgets", FrozenMapping(self.budgets))
        object.__setattr__(self, "drafters", tuple(self.drafters))
        if not self.budgets and self.share is None:
            raise ValueError("ScaleKV limits nothing: give budgets, or a share such as 0.05.")
        if self.share is not None and not 0.0 < self.share < 1.0:
            raise ValueError(f"share is {self.share:g}; it must lie between 0 and 1.")
        for name, budget in self.budgets.items():
            if budget.refiner < WINDOW or (budget.drafters and budget.drafter < WINDOW):
                raise ValueError(
                    f"The budget of scale {name} is below {WINDOW} tokens, which choose the rest."
                )
        capacity = self.capacity
        if capacity is None:
            capacity = CAPACITY if self.budgets else 0
            object.__setattr__(self, "capacity", capacity)
        if capacity < 0:
            raise ValueError(f"capacity is {capacity}; it must be 0 or more tokens.")

    @classmethod
    def published(cls, name: str, pruning: PruningMethod | None = None) -> ScaleKV:
        """The authors' settings for Infinity "2B" or "8B" at one megapixel.

        Raises:
            ValueError: When there are none of that name.
        """
        if name not in PUBLISHED:
            raise ValueError(f"No budgets were published for {name!r}; known are {', '.join(PUBLISHED)}.")
        return cls(PUBLISHED[name], pruning=pruning)

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """The plan of `pruning`, and what each layer goes on remembering."""
        plan = plan_generation(self.pruning, schedule, depth)
        if plan.int8_cache:
            raise ValueError("ScaleKV cuts keys and values, which Int8Cache rounds: use one of the two.")
        named = {find_scale(schedule, name): budget for name, budget in self.budgets.items()}
        for budget in named.values():
            if any(not 0 <= layer < depth for layer in budget.drafters):
                raise ValueError(f"A budget names drafter layers {budget.drafters} of a model of {depth}.")
        retained = tuple(self._retained(plan, layer, named) for layer in range(depth))
        limited = replace(plan, retained=retained)
        if all(limited.cached_tokens(layer) == _all_but_last(plan, layer) for layer in range(depth)):
            raise ValueError(
                f"No layer would forget anything: the budgets, or the capacity of {self.capacity} tokens, "
                "are never exceeded on this schedule. Lower them."
            )
        return limited

    def _retained(self, plan: GenerationPlan, layer: int, named: Mapping[int, Budget]) -> tuple[int, ...]:
        """Tokens that a layer remembers after each scale; nothing after the last that runs."""
        held, counts = 0, []
        for entry in plan.scales:
            held += entry.tokens(layer)
            coming = [
                later.scale.index for later in plan.scales[entry.scale.index + 1 :] if not later.skipped
            ]
            if not coming:
                held = 0
            elif held > (self.capacity or 0) and not entry.skipped:
                held = min(held, self._limit(plan, layer, named.get(coming[0])))
            counts.append(held)
        return tuple(counts)

    def _limit(self, plan: GenerationPlan, layer: int, budget: Budget | None) -> int:
        tokens = sum(entry.scale.tokens for entry in plan.scales)
        if budget is not None:
            return budget.drafter if layer in budget.drafters else budget.refiner
        if self.share is None or layer in self.drafters:
            return tokens
        return max(round(self.share * tokens), WINDOW)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return ScaleKVPruner(plan, start_pruner(self.pruning, plan, device))


def _all_but_last(plan: GenerationPlan, layer: int) -> int:
    """Tokens of a layer before the last scale that runs."""
    counts = [entry.tokens(layer) for entry in plan.scales if not entry.skipped]
    return sum(counts[:-1])


class ScaleKVPruner(NestedPruner):
    """Wraps the cache in one with budgets; everything else is the inner method's."""

    def attach(self, cache: Cache) -> Cache:
        cache = self.inner.attach(cache)
        every = (cache[layer] for layer in range(self.plan.depth))
        layers = [memory for memory in every if isinstance(memory, LayerCache)]
        if len(layers) < self.plan.depth:
            raise ValueError("ScaleKV cuts a cache that remembers everything; this model has another kind.")
        return BudgetedCache(cache.bytes, layers, self.plan)


class BudgetedCache:
    """Layers that forget, around the buffers of a cache, and the workspace that they share.

    Args:
        held: Bytes of the buffers.
        layers: The buffers, for what is remembered between two scales.
        plan: What each layer remembers after each scale.
    """

    def __init__(self, held: int, layers: Sequence[LayerCache], plan: GenerationPlan) -> None:
        entries = [entry for entry in plan.scales if not entry.skipped]
        # What a model holds besides the maps, a prompt's tokens for example, is never cut away.
        extra = layers[0].capacity - plan.cached_tokens(0)
        widest = 0
        for layer in range(plan.depth):
            seen, left = plan.attended(layer), plan.remembered(layer)
            widest = max([widest, *(most for most, rest in zip(seen, left, strict=True) if most > rest)])
        rows, heads, _, channels = layers[0].keys.shape
        self.workspace = layers[0].keys.new_empty(2, rows, heads, widest + extra, channels)
        self.held = held
        self.layers = [
            BudgetedLayer(buffers, self.workspace, _steps(entries, plan, layer), extra)
            for layer, buffers in enumerate(layers)
        ]

    def select(self, rows: slice) -> None:
        """See `Cache.select`."""
        for layer in self.layers:
            layer.buffers.rows = rows

    def __getitem__(self, layer: int) -> BudgetedLayer:
        return self.layers[layer]

    @property
    def bytes(self) -> int:
        return self.held + self.workspace.numel() * self.workspace.element_size()


@dataclass(frozen=True)
class _Step:
    """One scale in one layer: tokens to remember afterwards, None for all, and the window's places."""

    kept: int | None
    window: tuple[int, ...]


def _steps(entries: Sequence[ScalePlan], plan: GenerationPlan, layer: int) -> list[_Step]:
    seen, left = plan.attended(layer), plan.remembered(layer)
    steps = []
    for entry in entries:
        index = entry.scale.index
        kept = None if seen[index] == left[index] else left[index]
        steps.append(_Step(kept, tuple(window_places(entry, layer))))
    return steps


def window_places(entry: ScalePlan, layer: int) -> list[int]:
    """Which of a scale's tokens choose: on a grid of 4 x 4, or evenly spread where not all of a map run."""
    count = entry.tokens(layer)
    frames, height, width = entry.scale.grid
    if count < height * width or frames > 1 or min(height, width) < 4:
        size = min(WINDOW, count)
        return [(2 * place + 1) * count // (2 * size) for place in range(size)]

    def places(side: int) -> list[int]:
        cell = side // 4
        return [place * cell + (cell - 1) // 2 for place in range(4)]

    return [row * width + column for row in places(height) for column in places(width)]


class BudgetedLayer:
    """Keys and values of one layer, cut down after the scales that the plan names.

    Args:
        buffers: Holds what is remembered between two scales.
        workspace: [2, R, H, M, c], shared by all layers: holds what a scale sees where the layer will
            not remember it all.
        steps: One a scale that runs.
        extra: Tokens at the start that are remembered besides those of the plan, always.
    """

    def __init__(self, buffers: LayerCache, workspace: Tensor, steps: Sequence[_Step], extra: int) -> None:
        self.buffers, self.workspace = buffers, workspace
        self.steps, self.extra = iter(steps), extra

    @property
    def length(self) -> int:
        return self.buffers.length

    @property
    def capacity(self) -> int:
        return self.buffers.capacity

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        step = next(self.steps)
        if step.kept is None:
            return self.buffers.attend(query, key, value, scale)
        rows, held, new = self.buffers.rows, self.buffers.length, key.shape[2]
        keys, values = self.workspace[:, rows, :, : held + new]
        for whole, earlier, own in (
            (keys, self.buffers.keys, key),
            (values, self.buffers.values, value),
        ):
            whole[:, :, :held] = earlier[rows, :, :held]
            whole[:, :, held:] = own
        seen = slice(self.buffers.first, None)
        output = attention(query, keys[:, :, seen], values[:, :, seen], scale)
        self.buffers.length = 0
        if step.kept:
            window = torch.tensor(step.window, dtype=torch.int64, device=key.device)
            maps = slice(self.extra, None)
            places = held - self.extra + window
            chosen = choose(query[:, :, window], keys[:, :, maps], places, step.kept)
            chosen = chosen.unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
            self.buffers.length = self.extra + step.kept
            for buffer, whole in ((self.buffers.keys, keys), (self.buffers.values, values)):
                buffer[rows, :, self.extra : self.buffers.length] = whole[:, :, maps].gather(2, chosen)
        return output


def choose(query: Tensor, keys: Tensor, window: Tensor, count: int) -> Tensor:
    """What a layer remembers: the window, and what its queries ask for most.

    Args:
        query: [R, H, W, c] of the window.
        keys: [R, H, n, c] of all that is cached.
        window: [W] places of the window among them.
        count: Tokens to keep, the window included.

    Returns:
        [R, H, count] places in ascending order, each row's and head's own.
    """
    products = (query.float() @ keys.float().transpose(-1, -2)).sum(dim=2)
    products[..., window] = -torch.inf
    scores = functional.max_pool1d(products, KERNEL, stride=1, padding=KERNEL // 2)
    scores[..., window] = -torch.inf
    best = scores.topk(count - len(window), dim=-1).indices
    own = window.expand(*best.shape[:2], -1)
    return torch.cat([best, own], dim=-1).sort(dim=-1).values
