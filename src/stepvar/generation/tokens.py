"""Tokens of a scale that are still computed, with their positions, and gathering of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stepvar.generation.schedule import Scale

Choice: TypeAlias = Any
"""Values that a sampler drew for a scale, as the model's session commits them: a tensor [B, N, ...], or a
dataclass of such tensors."""


def gather_tokens(values: Tensor, index: Tensor) -> Tensor:
    """Picks tokens per row.

    Args:
        values: [rows or 1, N, ...] per-token values.
        index: [rows, K] positions to pick.

    Returns:
        [rows, K, ...].
    """
    # Picking whole rows of a flat table is several times faster than `gather` on an expanded index.
    flat = index
    if values.shape[0] != 1:
        rows = torch.arange(len(index), dtype=torch.int64, device=index.device)
        flat = index + values.shape[1] * rows[:, None]
    picked = values.flatten(0, 1).index_select(0, flat.flatten())
    return picked.view(*index.shape, *values.shape[2:])


def gather_choice(choice: Choice, index: Tensor) -> Choice:
    """Picks tokens of a choice at positions `index` [B, K]."""
    if isinstance(choice, Tensor):
        return gather_tokens(choice, index)
    picked = {part.name: gather_choice(getattr(choice, part.name), index) for part in fields(choice)}
    return replace(choice, **picked)


def put_choice(choice: Choice, index: Tensor, values: Choice) -> Choice:
    """A copy of a choice that has the values of another one at positions `index` [B, K]."""
    if isinstance(choice, Tensor):
        places = index.view(*index.shape, *(1,) * (choice.dim() - 2)).expand(-1, -1, *choice.shape[2:])
        return choice.scatter(1, places, gather_tokens(values, index).to(choice.dtype))
    put = {
        part.name: put_choice(getattr(choice, part.name), index, getattr(values, part.name))
        for part in fields(choice)
    }
    return replace(choice, **put)


def row_count(rows: slice) -> int:
    """How many rows a slice with both ends takes."""
    return len(range(rows.start, rows.stop, rows.step or 1))


def merge_choice(places: Tensor, choice: Choice, other: Choice) -> Choice:
    """The values of a choice where `places` [B, N] says so, and those of another one elsewhere."""
    if isinstance(choice, Tensor):
        mask = places.view(*places.shape, *(1,) * (choice.dim() - 2))
        return torch.where(mask, choice, other.to(choice.dtype))
    merged = {
        part.name: merge_choice(places, getattr(choice, part.name), getattr(other, part.name))
        for part in fields(choice)
    }
    return replace(choice, **merged)


def join_choices(choices: Sequence[Choice]) -> Choice:
    """Choices of one scale as one, pictures in order."""
    first = choices[0]
    if isinstance(first, Tensor):
        return torch.cat(list(choices))
    joined = {
        part.name: join_choices([getattr(choice, part.name) for choice in choices]) for part in fields(first)
    }
    return replace(first, **joined)


@dataclass(frozen=True)
class Tokens:
    """The tokens of one scale that are still computed; pruned ones are gone.

    Attributes:
        scale: The scale they belong to.
        positions: [rows or 1, N, ...] what the model's attention needs to know of the place of each
            token, a rotary table for example; None where it needs nothing.
        index: [rows, K] row-major positions in the scale's grid; None while all are computed.
    """

    scale: Scale
    positions: Tensor | None = None
    index: Tensor | None = None

    @property
    def count(self) -> int:
        """Tokens per row."""
        return self.scale.tokens if self.index is None else self.index.shape[1]

    def narrow(self, index: Tensor) -> Tokens:
        """Keeps the tokens at `index` [rows, K] (places among those still computed), in that order."""
        positions = None if self.positions is None else gather_tokens(self.positions, index)
        places = index if self.index is None else self.index.gather(1, index)
        return replace(self, positions=positions, index=places)
