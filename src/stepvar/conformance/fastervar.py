"""FasterVAR on golden cases: the forks' fixed settings, the stored random numbers, and what it computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.case import Case, CaseError, Comparison
from stepvar.generation.guidance import UNCONDITIONAL
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.pruning.fastervar import FasterVAR, FasterVARPruner
from stepvar.pruning.fastervar_shares import INFINITY_SHARES

REPOSITORY = "sen-mao/FasterVAR"

INFINITY_LOW_RANK, INFINITY_SKIPPED = 40, (48, 64)
"""Widths of maps, by which the fork of Infinity tells scales apart."""

NEAR = 1e-5
"""Representatives whose chances differ by less, relatively, may change places by rounding."""

Seen = Callable[[str, Tensor, Tokens | None], None]
"""Called with the name of a low-rank scale and its restored hidden states, or with a projection's tokens."""


@dataclass(frozen=True)
class ReplayedFasterVAR(FasterVAR):
    """FasterVAR with stored random numbers, all of whose steps are compared.

    Attributes:
        comparison: Of the case.
        names: What the case calls each scale.
        seen: Hears of what only the model can compare.
        one_base: Whether all low-rank scales restore from the scale before the first of them.
    """

    comparison: Comparison | None = None
    names: tuple[str, ...] = ()
    seen: Seen | None = None
    one_base: bool = False

    def start(self, plan: GenerationPlan, device: torch.device) -> FasterVARPruner:
        if self.comparison is None:
            raise ValueError("Stored numbers come from a case: pass comparison.")
        return _ReplayPruner(self, plan, device, self.comparison)


class _ReplayPruner(FasterVARPruner):
    def __init__(
        self, config: ReplayedFasterVAR, plan: GenerationPlan, device: torch.device, comparison: Comparison
    ) -> None:
        super().__init__(config, plan, device)
        self.comparison, self.names, self.seen = comparison, config.names, config.seen
        self.one_base = config.one_base

    @property
    def name(self) -> str:
        return self.names[self.entry.scale.index]

    def project(self, group: int, hidden: Tensor) -> tuple[Tokens, Tensor]:
        prefix = f"{self.name}.chunk{group}"
        self.comparison.check(f"{prefix}.input", hidden)
        tokens, mixed = super().project(group, hidden)
        self.comparison.check(f"{prefix}.projected", mixed)
        if self.seen is not None:
            self.seen(self.name, mixed, tokens)
        return tokens, mixed

    def choose(self, group: int, probabilities: Tensor, rank: int, copies: int) -> Tensor:
        name = f"{self.name}.chunk{group}.indices"
        self.comparison.check(f"{self.name}.chunk{group}.probabilities", probabilities)
        index = super().choose(group, probabilities, rank, copies)
        stored = self.comparison.case.tensors.get(name)
        if stored is None or stored.shape != index.shape:
            self.comparison.check(name, index)
            return index
        chances = probabilities / self.exponential(group, copies)
        if _is_order(stored.long(), chances):
            index = stored.long()
        self.comparison.check(name, index)
        return stored.long()

    def finish(self, group: int, hidden: Tensor) -> Tensor:
        bases = dict(self.bases)
        dense = super().finish(group, hidden)
        if self.one_base and self.entry.prunes:
            self.bases = bases
        if self.entry.prunes and (group + 1) * self.layers == self.plan.depth:
            self.comparison.check(f"{self.name}.head_input", dense)
            if self.seen is not None:
                self.seen(self.name, dense, None)
        return dense

    def exponential(self, group: int, copies: int) -> Tensor:
        return self.comparison.take(f"{self.name}.chunk{group}.exponential").float()

    def normal(self, group: int, copy: int, tokens: slice, rank: int) -> Tensor:
        stored = self.comparison.take(f"{self.name}.chunk{group}.gaussian")
        return stored[copy, tokens].float()


def _is_order(index: Tensor, chances: Tensor) -> bool:
    """Whether positions [R, r] are the r highest of chances [R, N], in order, up to rounding."""
    if index.min() < 0 or index.max() >= chances.shape[1]:
        return False
    chosen = chances.gather(1, index)
    left = chances.scatter(1, index, 0.0).amax(dim=1, keepdim=True)
    following = torch.cat([chosen[:, 1:], left], dim=1)
    distinct = all(len(row.unique()) == len(row) for row in index)
    return distinct and bool((following <= chosen * (1.0 + NEAR)).all())


def is_fork(case: Case) -> bool:
    """Whether a case comes from FasterVAR's forks."""
    return case.repository == REPOSITORY


def drops_guidance(weights: Sequence[float]) -> bool:
    """Whether a list of weights ends without guidance: 0 leaves the unconditional copies alone."""
    return bool(weights) and weights[-1] == 0.0


def infinity_fork(
    comparison: Comparison, schedule: ScaleSchedule, weights: Sequence[float]
) -> FasterVAR | None:
    """What the fork of Infinity does on a schedule; None where it changes nothing.

    Raises:
        CaseError: When the case names an alpha that has no shares.
    """
    call, count = comparison.case.info["call"], len(schedule)
    low_rank = [scale for scale in schedule if scale.width == INFINITY_LOW_RANK]
    skip = tuple(scale.index - count for scale in schedule if scale.width in INFINITY_SKIPPED)
    groups = _groups(comparison.case.info.get("low_rank", {}))
    alpha = str(call.get("alpha"))
    if low_rank and alpha not in INFINITY_SHARES:
        raise CaseError(
            f"{comparison.case.folder} has alpha {alpha!r}; known are {', '.join(INFINITY_SHARES)}."
        )
    method = ReplayedFasterVAR(
        skip=skip,
        # Fewer groups take the first entries there.
        shares={scale.index - count: INFINITY_SHARES[alpha][:groups] for scale in low_rank},
        groups=groups,
        comparison=comparison,
        names=tuple(f"s{scale.index:02}" for scale in schedule),
    )
    return _unguided(method, weights)


def star_fork(
    comparison: Comparison,
    schedule: Sequence[Scale],
    names: Sequence[str],
    weights: Sequence[float],
    last_steps: Sequence[int],
    seen: Seen,
) -> FasterVAR | None:
    """What the fork of InfinityStar does on a schedule; None where it changes nothing.

    Args:
        last_steps: Steps of the last scale.
        seen: Hears of what only the model can compare.
    """
    info = comparison.case.info
    args = info["args"]
    tokens, rank = schedule[-1].tokens, int(args.get("fastervar_rp_rank") or 0)
    # A rank is asked for as the share that rounds down to it.
    share = (rank + 0.5) / tokens if rank else float(args.get("fastervar_rp_rank_ratio") or 0.0)
    projects = bool(int(args.get("fastervar_rp_last_scale") or 0)) and share < 1.0
    method = ReplayedFasterVAR(
        shares={step - len(schedule): (share,) for step in last_steps} if projects else {},
        groups=int(info["transformer_ctor"]["block_chunks"]),
        extra=0,
        comparison=comparison,
        names=tuple(names),
        seen=seen,
        # Repetitions of the last scale all restore from the scale before it.
        one_base=True,
    )
    return _unguided(method, weights)


def _unguided(method: ReplayedFasterVAR, weights: Sequence[float]) -> FasterVAR | None:
    """The method without guidance from the first weight of 0 on; None where it does nothing at all."""
    if drops_guidance(weights):
        first = list(weights).index(0.0) - len(weights)
        return replace(method, unguided=first, remaining=UNCONDITIONAL)
    return method if method.shares or method.skip else None


def _groups(low_rank: dict[str, Any]) -> int:
    """How many groups of layers a description such as {"s10.chunk0": ...} names; else the published eight."""
    numbers = [int(match[1]) for name in low_rank if (match := re.fullmatch(r"\w+\.chunk(\d+)", name))]
    return max(numbers, default=7) + 1
