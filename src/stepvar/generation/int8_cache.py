"""Keys and values held as 8-bit integers: about half of a bfloat16 cache, a quarter of a float32 one."""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.generation.attention import attention

LARGEST = 127
SCALE_BYTES = 4
"""Of the one factor that a token has in each head."""


class Int8LayerCache:
    """Keys and values of one layer, each token and head with a factor of its own.

    A scale sees its own keys and values as they are, and those of earlier scales rounded: to 1/254 of the
    largest channel of a token and head, at most. One layer's are expanded at a time.

    Attributes:
        first: First position that queries see; 0 but for a model that keeps others before it.
        rows: Rows of the buffers that keys and values belong to.
    """

    def __init__(self, rows: int, heads: int, capacity: int, head_dim: int, device: torch.device) -> None:
        shape = (2, rows, heads, capacity)
        self.codes = torch.empty(*shape, head_dim, dtype=torch.int8, device=device)
        self.factors = torch.empty(*shape, 1, dtype=torch.float32, device=device)
        self.length = 0
        self.first = 0
        self.rows = slice(None)

    @property
    def capacity(self) -> int:
        return self.codes.shape[3]

    @property
    def bytes(self) -> int:
        """Size of the buffers."""
        return self.codes.numel() + SCALE_BYTES * self.factors.numel()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        return attention(query, *self.extend(key, value), scale)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in a scale's keys and values [R, H, N, c]; returns all that it sees, [R, H, M, c]."""
        start, rows = self.length, self.rows
        stop = start + key.shape[2]
        if stop > self.capacity:
            raise RuntimeError(f"The KV cache holds {self.capacity} tokens, but {stop} were written.")
        new = torch.stack([key, value])
        seen = slice(self.first, start)
        earlier = (self.codes[:, rows, :, seen] * self.factors[:, rows, :, seen]).to(new.dtype)
        keys, values = torch.cat([earlier, new], dim=3)
        exact = new.float()
        factors = exact.abs().amax(dim=-1, keepdim=True).div_(LARGEST)
        self.factors[:, rows, :, start:stop] = factors
        # A token of zeros has a factor of zero: any integer stands for it.
        codes = (exact / factors.clamp_min(torch.finfo(torch.float32).tiny)).round_()
        self.codes[:, rows, :, start:stop] = codes.to(torch.int8)
        self.length = stop
        return keys, values
