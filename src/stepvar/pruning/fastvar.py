"""FastVAR: every residual branch of a late scale runs on its most distinctive tokens.

Source: "FastVAR: Linear Visual Autoregressive Modeling via Cached Token Pruning", arXiv 2503.23367, as
its authors' code computes it (csguoh/FastVAR, fastvar_utils.py and fastvar_basic.py of the folders
Infinity and HART).

That code recognises scales by the width of their map, so on most aspect ratios it prunes nothing, leaves
out a scale in the middle, or fills from a cache of the picture before. Here scales are named, the cache
belongs to one generation, and its scale is by default the last one before the first pruned scale that runs
in full: 24 x 24 tokens for Infinity's square pictures, 36 x 36 for HART's, as published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.plan import GenerationPlan, ScalePlan, find_scale
from stepvar.generation.pruner import Branch, LateScalePruning, Pruner
from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import Tokens, gather_tokens
from stepvar.pruning.interpolation import area_resized, match_rows
from stepvar.pruning.scores import distance_to_mean
from stepvar.pruning.selection import keep_highest

DENSE_START, DENSE_END = 3 / 32, 4 / 32
"""Shares of the layers that stay dense: 0 to 2 and 28 to 31 of Infinity-2B's 32."""


@dataclass(frozen=True)
class FastVAR(LateScalePruning):
    """Runs each residual branch on the tokens farthest from the mean token, and fills the rest from a cache.

    A token's score is the squared distance of its hidden state to the mean of its row's tokens. It is taken
    anew for every branch, and for the two copies of classifier-free guidance apart. Where a branch did not
    run, what it gave at the cache scale is added, interpolated by area.

    Attributes:
        ratios, skip, unguided: See `LateScalePruning`.
        first_layer: First layer that is pruned; by default 3/32 of the depth stay dense, at least one
            layer. HART's fork prunes from 0.
        dense_end: Layers at the end that stay dense; by default 4/32 of the depth. HART's fork has 0.
        cache_scale: Name of the scale that fills; by default the last before the first pruned one that
            runs in full.

    Raises:
        ValueError: When a field is out of range.
    """

    first_layer: int | None = None
    dense_end: int | None = None
    cache_scale: int | None = None

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """Fixes kept counts and skips on a schedule, for a model of `depth` layers."""
        first = max(round(DENSE_START * depth), 1) if self.first_layer is None else self.first_layer
        dense_end = round(DENSE_END * depth) if self.dense_end is None else self.dense_end
        if not 0 <= dense_end < depth - first:
            raise ValueError(
                f"With first_layer {first} and dense_end {dense_end} no layer of {depth} is pruned: "
                f"dense_end may be 0 to {depth - first - 1}."
            )
        plan = self.resolve(schedule, depth, first, depth - dense_end)
        self.cache_index(plan)
        return plan

    def cache_index(self, plan: GenerationPlan) -> int:
        """Index of the scale whose branches fill.

        Raises:
            ValueError: When the named scale does not run in full before the first pruned one.
        """
        first = next((entry.scale.index for entry in plan.scales if entry.prunes), len(plan.scales))
        full = [entry.scale.index for entry in plan.scales[:first] if not entry.skipped]
        if self.cache_scale is None:
            if not full and first < len(plan.scales):
                raise ValueError(
                    f"Scale {plan[first].scale} cannot be pruned: no scale before it runs in full, from "
                    "which FastVAR could fill."
                )
            return full[-1] if full else 0
        schedule = ScaleSchedule(tuple(entry.scale for entry in plan.scales))
        index = find_scale(schedule, self.cache_scale)
        if index not in full:
            names = ", ".join(str(schedule[entry]) for entry in full)
            raise ValueError(
                f"cache_scale names scale {schedule[index]}, which does not run in full before the first "
                f"pruned scale: those are {names}."
            )
        return index

    def start(self, plan: GenerationPlan, device: torch.device) -> FastVARPruner:
        return FastVARPruner(self, plan)


class FastVARPruner(Pruner):
    """Narrows and fills around every residual branch; the hidden states stay dense.

    Attributes:
        cache: What each branch gave at the cache scale, [R, N, C], by layer and name.
    """

    def __init__(self, config: FastVAR, plan: GenerationPlan) -> None:
        super().__init__(plan)
        self.cache_entry = plan[config.cache_index(plan)]
        self.cache: dict[tuple[int, str], Tensor] = {}
        self.index: Tensor | None = None

    @property
    def kept_index(self) -> Tensor | None:
        """What the first pruned branch kept of the conditional copies; later ones choose anew."""
        return self.index

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.entry, self.images = entry, images
        self.index = None

    def residual(self, layer: int, name: str, branch: Branch, tokens: Tokens, hidden: Tensor) -> Tensor:
        pruned = self.entry.prunes and self.entry.first_layer <= layer < self.entry.last_layer
        if pruned and self.entry.kept < tokens.count:
            index = self.select(layer, name, hidden)
            if self.index is None:
                places = index if tokens.index is None else tokens.index.gather(1, index)
                self.index = places[: self.images]
            output = branch(gather_tokens(hidden, index), tokens.narrow(index))
            return hidden + self.filled(self.cache[layer, name], index, output, tokens)
        output = branch(hidden, tokens)
        if self.entry.scale == self.cache_entry.scale and not pruned:
            # Without what a model has before a map, a prompt's tokens for example.
            self.store(layer, name, output[:, -self.entry.scale.tokens :])
        return hidden + output

    def select(self, layer: int, name: str, hidden: Tensor) -> Tensor:
        """Which of the tokens a branch runs on, [R, K], each row's own."""
        return keep_highest(distance_to_mean(hidden), self.entry.kept)

    def store(self, layer: int, name: str, output: Tensor) -> None:
        """Remembers what a branch gave at the cache scale, if a later scale will need it."""
        if any(entry.prunes and entry.first_layer <= layer < entry.last_layer for entry in self.plan.scales):
            self.cache[layer, name] = output

    def filled(self, cached: Tensor, index: Tensor, output: Tensor, tokens: Tokens | None = None) -> Tensor:
        """A branch at all its tokens: computed ones [R, K, C] at `index`, the others from the cache."""
        rows, channels = output.shape[0], output.shape[2]
        cached = match_rows(cached, rows, self.plan.remaining)
        filled = area_resized(cached, self.cache_entry.scale.grid, self.entry.scale.grid)
        if tokens is not None and tokens.index is not None:
            filled = gather_tokens(filled, tokens.index)
        filled = filled.to(output.dtype).contiguous()
        return filled.scatter_(1, index.unsqueeze(-1).expand(-1, -1, channels), output)
