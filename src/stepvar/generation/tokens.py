"""Which positions of a scale are alive, and what travels with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stepvar.generation.schedule import Scale


def gather_tokens(values: Tensor, index: Tensor) -> Tensor:
    """Picks tokens per row.

    Args:
        values: [rows or 1, N, ...] per-token values.
        index: [rows, K] positions to pick.

    Returns:
        [rows, K, ...].
    """
    if values.shape[0] == 1 and index.shape[0] != 1:
        values = values.expand(index.shape[0], *values.shape[1:])
    shape = index.shape + (1,) * (values.dim() - 2)
    return values.gather(1, index.view(shape).expand(*index.shape, *values.shape[2:]))


@dataclass(frozen=True)
class Tokens:
    """The living tokens of one scale.

    Attributes:
        scale: The scale they belong to.
        rotary: (cosine, sine) tables, each [rows or 1, N, head_dim / 2], or None for models whose
            positions are not rotary. Row n belongs to the n-th living token.
        index: [rows, K] row-major positions in the scale's grid; None while all are alive.
    """

    scale: Scale
    rotary: tuple[Tensor, Tensor] | None = None
    index: Tensor | None = None

    @property
    def count(self) -> int:
        """Living tokens per row."""
        return self.scale.tokens if self.index is None else self.index.shape[1]

    def narrow(self, index: Tensor) -> Tokens:
        """Keeps the tokens at `index` [rows, K] (positions among the living ones), in that order."""
        rotary = None
        if self.rotary is not None:
            rotary = (gather_tokens(self.rotary[0], index), gather_tokens(self.rotary[1], index))
        positions = index if self.index is None else torch.gather(self.index, 1, index)
        return replace(self, rotary=rotary, index=positions)
