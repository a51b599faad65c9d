"""What self-attention remembers: the KV cache of inference, nothing, or the block-causal view of training.

All answer one call, `attend(query, key, value)`, so that a block is written once.
Shapes: R rows (conditional, then unconditional), H heads, N tokens, c channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of query [R, H, N, c] to key and value [R, H, M, c]; returns [R, H, N, c].

    Args:
        scale: Of the products; 1 / sqrt(c) by default.
        mask: [R or 1, 1, 1, M], True where a key may be seen; None keeps every fast kernel usable.
    """
    if query.device.type == "cpu" and query.requires_grad:
        # torch's CPU kernel has a slow backward: written out, training steps take half the time.
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        products = (query * scale) @ key.transpose(-1, -2)
        if mask is not None:
            products = products.masked_fill(~mask, torch.finfo(products.dtype).min)
        return products.float().softmax(dim=-1).to(value.dtype) @ value
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


class Memory(Protocol):
    """What a self-attention layer attends to besides its own tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attends from query [R, H, N, c]; returns [R, H, N, c]."""
        ...


class Cache(Protocol):
    """The memory of every layer, and what it takes."""

    @property
    def bytes(self) -> int: ...

    def __getitem__(self, layer: int) -> Memory: ...


class LayerCache:
    """Keys and values of one layer, for the length that the plan promises.

    Written in place and read as a view: nothing is concatenated, and no mask is needed because
    every token of a scale sees all earlier scales and its own.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        start, rows = self.length, key.shape[0]
        stop = start + key.shape[2]
        if stop > self.capacity:
            raise RuntimeError(f"The KV cache holds {self.capacity} tokens, but {stop} were written.")
        self.keys[:rows, :, start:stop].copy_(key)
        self.values[:rows, :, start:stop].copy_(value)
        self.length = stop
        keys, values = self.keys[:rows, :, :stop], self.values[:rows, :, :stop]
        return attention(query, keys, values, scale)


class KVCache:
    """One `LayerCache` per layer, allocated once per generation with exact lengths.

    Args:
        lengths: Tokens each layer will store over the whole generation.
        rows: Batch rows, unconditional copies included.
        heads, head_dim: Shape of the keys and values.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        rows: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def allocate(length: int) -> Tensor:
            return torch.empty(rows, heads, length, head_dim, dtype=dtype, device=device)

        self.layers = [LayerCache(allocate(length), allocate(length)) for length in lengths]

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]

    @property
    def bytes(self) -> int:
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in self.layers)


class NoCache:
    """Nothing is remembered: the tokens of a scale see one another and no earlier scale.

    Stands in for a `KVCache`, and for the memory of each of its layers.
    """

    bytes = 0

    def __getitem__(self, layer: int) -> NoCache:
        return self

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        return attention(query, key, value, scale)


class BlockCausal:
    """All scales in one sequence, as in training: a token sees its own and all earlier scales.

    Runs one unmasked attention per scale, which costs less than one masked attention over all.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        outputs, stop = [], 0
        for part in query.split(self.lengths, dim=2):
            stop += part.shape[2]
            outputs.append(attention(part, key[:, :, :stop], value[:, :, :stop], scale))
        return torch.cat(outputs, dim=2)
