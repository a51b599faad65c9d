"""FasterVAR: late scales run on random mixtures of their tokens, without the copies that know the prompt.

Source: "FasterVAR" (first "StageVAR"), arXiv 2512.16483, as its authors' code computes it (sen-mao/FasterVAR,
infinity/models/infinity.py and utils/low_rank_feature.py of the folders Infinity, InfiniryStar and hart).

A low-rank scale goes through the layers in groups. Before a group, r of its N tokens are drawn as
representatives, with a probability that grows with their squared length, and the group runs on r random
mixtures x' = Z^T x / sqrt(r) of all tokens, Z being standard normal. After it, its outputs take the places of
the representatives in what the same group gave at the scale before, resized by area; everything else that
this scale brought is forgotten.

That code recognises scales by the width of their map, so away from square pictures it does nothing or fails.
Here scales are named; on square pictures of one megapixel both do the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from stepvar.generation.frozen import FrozenMapping
from stepvar.generation.guidance import UNCONDITIONAL
from stepvar.generation.plan import GenerationPlan, ScalePlan, find_scale
from stepvar.generation.pruner import LateScalePruning, Pruner
from stepvar.generation.randomness import seeded_generator
from stepvar.generation.schedule import Grid, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.pruning.fastervar_shares import INFINITY_SHARES
from stepvar.pruning.interpolation import area_resized, match_rows

PLACES = ("first", "representatives")

DRAWN_AT_ONCE = 2**24
"""Most normal random numbers that are held at a time: at 720p a group needs half a milliard."""


@dataclass(frozen=True)
class FasterVAR(LateScalePruning):
    """Runs late scales on random mixtures of their tokens, all layers of them.

    Attributes:
        ratios, skip, unguided, remaining: See `LateScalePruning`. A ratio gives every group the same rank.
        shares: Shares of tokens to keep, by scale, where groups differ: rank floor(share x tokens) + extra.
            They are spread evenly over the groups, and averaged where there are more shares than groups.
        groups: Most groups of layers; the largest number up to it that divides the depth is taken.
        extra: Added to a rank that a share gives: 1 for Infinity and HART, 0 for InfinityStar.
        places: Where attention takes the mixtures to be: at the "first" positions of the map in row-major
            order, as for Infinity and InfinityStar, or at their "representatives", as for HART.
        seed: Of the method's own random numbers, the same for every picture; sampling never sees them.

    Raises:
        ValueError: When a field is out of range.
    """

    shares: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    groups: int = 8
    extra: int = 1
    places: str = "first"
    seed: int = 0

    needs_whole_scales: ClassVar[bool] = True
    """It mixes all tokens of a scale: none may have been left out by a method around it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = {name: tuple(values) for name, values in self.shares.items()}
        object.__setattr__(self, "shares", FrozenMapping(shares))
        for name, values in shares.items():
            if not values or not all(0.0 <= share < 1.0 for share in values):
                raise ValueError(
                    f"The shares of scale {name} are {values}; give one or more, each 0 or more and below 1."
                )
        if self.groups < 1:
            raise ValueError(f"groups is {self.groups}; layers are in one group at least.")
        if self.extra < 0:
            raise ValueError(f"extra is {self.extra}; it is a number of tokens, 0 or more.")
        if self.places not in PLACES:
            raise ValueError(f"Unknown places {self.places!r}; known are {', '.join(PLACES)}.")

    @classmethod
    def published(cls, alpha: str = "0.96") -> FasterVAR:
        """The authors' settings for Infinity.

        Args:
            alpha: Part of the tokens' energy that the ranks hold, a name of `INFINITY_SHARES`.

        Raises:
            ValueError: When nothing was published for it.
        """
        if alpha not in INFINITY_SHARES:
            known = ", ".join(INFINITY_SHARES)
            raise ValueError(f"No shares were published for alpha {alpha!r}; known are {known}.")
        shares = {-3: INFINITY_SHARES[alpha]}
        return cls(skip=(-2, -1), unguided=-3, remaining=UNCONDITIONAL, shares=shares)

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """Fixes ranks and skips on a schedule, for a model of `depth` layers."""
        named = {find_scale(schedule, name): values for name, values in self.shares.items()}
        twice = self.ratios.keys() & self.shares.keys()
        if twice:
            raise ValueError(f"Scale {min(twice)} has both a ratio and shares: give one of them.")
        # Any ratio marks a scale; its ranks come from the shares.
        marks = dict.fromkeys(self.shares, 0.5)
        plan = self.resolve(schedule, depth, 0, depth, {**self.ratios, **marks})
        plan = replace(plan, scales=tuple(self._in_groups(entry, depth, named) for entry in plan.scales))
        if plan.scales[0].prunes:
            raise ValueError(
                f"Scale {plan[0].scale} cannot be projected: no scale before it runs, from which FasterVAR "
                "could restore."
            )
        return plan

    def group_layers(self, depth: int) -> int:
        """Layers of a group."""
        return depth // max(count for count in range(1, min(self.groups, depth) + 1) if depth % count == 0)

    def _in_groups(self, entry: ScalePlan, depth: int, named: Mapping[int, Sequence[float]]) -> ScalePlan:
        """A scale's plan with the rank of every group."""
        index, tokens, layers = entry.scale.index, entry.scale.tokens, self.group_layers(depth)
        if index not in named and not entry.prunes:
            return entry
        ranks = [entry.kept] * (depth // layers)
        if index in named:
            spread = averaged(named[index], len(ranks))
            ranks = [max(math.floor(share * tokens) + self.extra, 1) for share in spread]
        if max(ranks) >= tokens:
            raise ValueError(
                f"Scale {entry.scale} has {tokens} tokens, and would run on {max(ranks)} mixtures of them: "
                "lower its share, or name a larger scale."
            )
        stages = tuple((group * layers, rank) for group, rank in enumerate(ranks))
        return replace(entry, kept=ranks[-1], stages=stages)

    def start(self, plan: GenerationPlan, device: torch.device) -> FasterVARPruner:
        return FasterVARPruner(self, plan, device)


def averaged(values: Sequence[float], count: int) -> list[float]:
    """Values spread evenly over `count` places, each the mean of what falls into it."""
    means = []
    for place in range(count):
        # In exact fractions, so that equal values stay what they are.
        first, last = Fraction(place * len(values), count), Fraction((place + 1) * len(values), count)
        inside = [
            max(min(last, Fraction(index + 1)) - max(first, Fraction(index)), Fraction(0)) * Fraction(value)
            for index, value in enumerate(values)
        ]
        means.append(float(sum(inside) / (last - first)))
    return means


class FasterVARPruner(Pruner):
    """Projects each group of a low-rank scale, and restores after it.

    Attributes:
        bases: Grid and output [R, N, C] of each group at the last scale that ran, where the next needs it.
    """

    def __init__(self, config: FasterVAR, plan: GenerationPlan, device: torch.device) -> None:
        super().__init__(plan)
        self.config, self.layers = config, config.group_layers(plan.depth)
        self.device, self.generator = device, seeded_generator(config.seed, device)
        self.bases: dict[int, tuple[Grid, Tensor]] = {}
        self.full: Tokens | None = None
        self.index: Tensor | None = None

    @property
    def kept_index(self) -> Tensor | None:
        """Representatives of the last group, of the conditional or the only copies."""
        return None if self.index is None else self.index[: self.images]

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.entry, self.images, self.index = entry, images, None
        later = self.plan.scales[entry.scale.index + 1 :]
        self.following = next((other for other in later if not other.skipped), None)

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        group, inside = divmod(layer, self.layers)
        if inside:
            return tokens, hidden
        if layer:
            hidden = self.finish(group - 1, hidden)
        else:
            self.full = tokens
        if not self.entry.prunes:
            return tokens, hidden
        return self.project(group, hidden)

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        return self.finish(self.plan.depth // self.layers - 1, hidden)

    def finish(self, group: int, hidden: Tensor) -> Tensor:
        """After a group: dense hidden states [R, N, C], kept if the next scale restores from them."""
        if self.entry.prunes:
            hidden = self.restore(group, hidden)
        if self.following is not None and self.following.prunes:
            # Without what a model has before a map, a prompt's tokens for example.
            output = hidden[:, -self.entry.scale.tokens :]
            if self.plan.unguided is not None and self.plan.unguided <= self.following.scale.index:
                output = match_rows(output, self.images, self.plan.remaining)
            self.bases[group] = self.entry.scale.grid, output.clone()
        return hidden

    def project(self, group: int, hidden: Tensor) -> tuple[Tokens, Tensor]:
        """Draws representatives, and mixes hidden states [R, N, C] to [R, r, C]."""
        if self.full is None:
            raise RuntimeError("A group was projected before the first one.")
        rank, copies = self.entry.tokens(group * self.layers), len(hidden) // self.images
        index = self.index = self.choose(group, token_energy(hidden), rank, copies)
        mixed = hidden.new_zeros(len(hidden), rank, hidden.shape[2])
        for copy in range(copies):
            rows = range(copy * self.images, (copy + 1) * self.images)
            for tokens in self.blocks(rank):
                weights = self.normal(group, copy, tokens, rank).t()
                # Picture by picture, so that a batch adds up as its pictures alone do.
                for row in rows:
                    mixed[row].addmm_(weights, hidden[row, tokens], alpha=rank**-0.5)
        placed = self.full.narrow(index)
        if self.config.places == "first" and self.full.positions is not None:
            placed = replace(placed, positions=self.full.positions[:, :rank])
        return placed, mixed

    def restore(self, group: int, hidden: Tensor) -> Tensor:
        """Output [R, r, C] of a group at its representatives, and of the scale before elsewhere."""
        if self.index is None:
            raise RuntimeError("A group was restored before it was projected.")
        grid, base = self.bases[group]
        base = match_rows(base, len(hidden), self.plan.remaining)
        restored = area_resized(base, grid, self.entry.scale.grid).contiguous()
        return restored.scatter_(1, self.index.unsqueeze(-1).expand_as(hidden), hidden)

    def choose(self, group: int, probabilities: Tensor, rank: int, copies: int) -> Tensor:
        """Representatives [R, r] drawn without replacement, the first drawn first.

        The largest of p / e with exponential e, which is how `torch.multinomial` draws too.
        """
        numbers = self.exponential(group, copies).repeat_interleave(self.images, dim=0)
        return (probabilities / numbers).topk(rank, dim=1).indices

    def blocks(self, rank: int) -> list[slice]:
        """Tokens whose normal numbers are drawn at a time."""
        tokens = self.entry.scale.tokens
        step = max(DRAWN_AT_ONCE // rank, 1)
        return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]

    def exponential(self, group: int, copies: int) -> Tensor:
        """Exponential random numbers [copies, N] of a group at the current scale."""
        size = copies, self.entry.scale.tokens
        numbers = torch.empty(size, dtype=torch.float32, device=self.generator.device)
        return numbers.exponential_(generator=self.generator).to(self.device)

    def normal(self, group: int, copy: int, tokens: slice, rank: int) -> Tensor:
        """Normal random numbers [n, r] of some tokens, of one copy of a picture."""
        size, drawing = (tokens.stop - tokens.start, rank), self.generator
        return torch.randn(size, generator=drawing, dtype=torch.float32, device=drawing.device).to(
            self.device
        )


def token_energy(hidden: Tensor) -> Tensor:
    """Squared lengths of tokens [R, N, C] as shares of their row's sum, [R, N]."""
    energy = hidden.float().square().sum(dim=2)
    return energy / energy.sum(dim=1, keepdim=True)
