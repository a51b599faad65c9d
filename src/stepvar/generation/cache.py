"""Memories of self-attention: KV caches of inference, no memory, and block-causal masks of training.

All answer one call, `attend(query, key, value)`, so that a block is written once.
Shapes: R rows (conditional, then unconditional), H heads, N tokens, c channels of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.attention import attention
from stepvar.generation.int8_cache import Int8LayerCache


class Memory(Protocol):
    """What a self-attention layer attends to besides its own tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attends from query [R, H, N, c]; returns [R, H, N, c]."""
        ...


class Cache(Protocol):
    """The memory of every layer, and what it takes."""

    @property
    def bytes(self) -> int: ...

    def select(self, rows: slice) -> None:
        """A scale starts, which computes these rows."""
        ...

    def __getitem__(self, layer: int) -> Memory: ...


class LayerCache:
    """Keys and values of one layer, for the length that the plan promises.

    Written in place and read as a view: nothing is concatenated, and no mask is needed because
    every token of a scale sees all earlier scales and its own.

    Attributes:
        first: First position that queries see; 0 but for a model that keeps others before it.
        rows: Rows of the buffers that keys and values belong to.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0
        self.first = 0
        self.rows = slice(None)

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        return attention(query, *self.extend(key, value), scale)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in a scale's keys and values [R, H, N, c]; returns all that it sees, [R, H, M, c]."""
        start, rows = self.length, self.rows
        stop = start + key.shape[2]
        if stop > self.capacity:
            raise RuntimeError(f"The KV cache holds {self.capacity} tokens, but {stop} were written.")
        self.keys[rows, :, start:stop].copy_(key)
        self.values[rows, :, start:stop].copy_(value)
        self.length = stop
        seen = slice(self.first, stop)
        return self.keys[rows, :, seen], self.values[rows, :, seen]


@dataclass(frozen=True)
class Span:
    """Keys and values that one layer makes at one step.

    Attributes:
        step: Index of the step; what is known before the first step has -1.
        tokens: How many.
        last_step: Last step that sees them; `step` itself where no later one does.
    """

    step: int
    tokens: int
    last_step: int

    @property
    def kept(self) -> bool:
        return self.last_step > self.step


@dataclass(frozen=True)
class Window:
    """All spans of one layer in the order they are made: what each step sees, what may be forgotten.

    A step sees its own tokens and everything earlier that is not forgotten yet.
    """

    spans: tuple[Span, ...]

    def seen(self) -> list[int]:
        """Keys that each span's queries see, their own included."""
        counts: list[int] = []
        remembered: list[Span] = []
        for span in self.spans:
            remembered = [earlier for earlier in remembered if earlier.last_step >= span.step]
            counts.append(span.tokens + sum(earlier.tokens for earlier in remembered))
            if span.kept:
                remembered.append(span)
        return counts

    @property
    def capacity(self) -> int:
        """Most tokens that are remembered at a time."""
        pairs = zip(self.spans, self.seen(), strict=True)
        return max((seen for span, seen in pairs if span.kept), default=0)

    @property
    def longest(self) -> int:
        """Most keys seen by a step that leaves nothing behind."""
        pairs = zip(self.spans, self.seen(), strict=True)
        return max((seen for span, seen in pairs if not span.kept), default=0)


class WindowLayerCache:
    """Keys and values of one layer of a model whose steps do not see all earlier ones.

    What later steps see is kept in a buffer of the layer's own. Keys that no later step sees go no
    further than a workspace that all layers share, behind a copy of what is remembered.

    Args:
        window: What will be made, and how long it is seen.
        kept: Buffer for keys and values, [2, R, H, window.capacity, c].
        workspace: [2, R, H, at least window.longest, c].
    """

    def __init__(self, window: Window, kept: Tensor, workspace: Tensor) -> None:
        self.window = window
        self.kept = kept
        self.workspace = workspace
        self.length = 0
        self.written = 0
        self.rows = slice(None)
        self.remembered: list[Span] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        return attention(query, *self.extend(key, value), scale)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in a span's keys and values [R, H, N, c]; returns all that it sees, [R, H, M, c]."""
        span = self._next(key.shape[2])
        stop, rows = self.length + span.tokens, self.rows
        buffer = self.kept if span.kept else self.workspace
        if not span.kept:
            buffer[:, rows, :, : self.length] = self.kept[:, rows, :, : self.length]
        buffer[0, rows, :, self.length : stop] = key
        buffer[1, rows, :, self.length : stop] = value
        if span.kept:
            self.length = stop
            self.remembered.append(span)
        return buffer[0, rows, :, :stop], buffer[1, rows, :, :stop]

    def _next(self, tokens: int) -> Span:
        """The span about to be written, after forgetting what it does not see."""
        if self.written == len(self.window.spans) or self.window.spans[self.written].tokens != tokens:
            raise RuntimeError(f"{tokens} tokens came as number {self.written}, which the plan has not.")
        span = self.window.spans[self.written]
        self.written += 1
        self._forget(span.step)
        return span

    def _forget(self, step: int) -> None:
        """Drops what a step does not see, and closes the gaps."""
        start = stop = 0
        remembered = []
        for span in self.remembered:
            if span.last_step >= step:
                if start > stop:
                    # A copy in between, since source and target may overlap.
                    moved = self.kept[:, :, :, start : start + span.tokens].clone()
                    self.kept[:, :, :, stop : stop + span.tokens] = moved
                remembered.append(span)
                stop += span.tokens
            start += span.tokens
        self.remembered, self.length = remembered, stop


class IsolatedMemory:
    """Stores keys and values in a cache, and attends to these alone: for a prefix or a condition.

    Args:
        layer: Where they are stored.
        repeats: Rows of the cache that each row that runs stands for, one after the other.
    """

    def __init__(self, layer: LayerCache | WindowLayerCache | Int8LayerCache, repeats: int = 1) -> None:
        self.layer = layer
        self.repeats = repeats

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        stored = (part.repeat_interleave(self.repeats, 0) for part in (key, value))
        self.layer.extend(*(stored if self.repeats > 1 else (key, value)))
        return attention(query, key, value, scale)


class KVCache:
    """One `LayerCache` per layer, allocated once per generation with exact lengths.

    Args:
        lengths: Tokens each layer will store over the whole generation; or the `Window` of each layer,
            for a model whose steps do not see all earlier ones.
        rows: Batch rows, unconditional copies included.
        heads, head_dim: Shape of the keys and values.
        int8: Whether they are held as 8-bit integers; not for windows.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Sequence[Window],
        rows: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        int8: bool = False,
    ) -> None:
        self.layers: list[LayerCache | WindowLayerCache | Int8LayerCache]
        if int8:
            rounded = [
                Int8LayerCache(rows, heads, entry, head_dim, device)
                for entry in lengths
                if isinstance(entry, int)
            ]
            self.layers, self.bytes = list(rounded), sum(layer.bytes for layer in rounded)
            return

        def allocate(length: int) -> Tensor:
            return torch.empty(2, rows, heads, length, head_dim, dtype=dtype, device=device)

        longest = max((entry.longest for entry in lengths if isinstance(entry, Window)), default=0)
        workspace = allocate(longest)
        buffers = [allocate(entry.capacity if isinstance(entry, Window) else entry) for entry in lengths]
        self.layers = [
            WindowLayerCache(entry, buffer, workspace) if isinstance(entry, Window) else LayerCache(*buffer)
            for entry, buffer in zip(lengths, buffers, strict=True)
        ]
        self.bytes = sum(buffer.numel() * buffer.element_size() for buffer in (workspace, *buffers))

    def select(self, rows: slice) -> None:
        """See `Cache.select`."""
        for layer in self.layers:
            layer.rows = rows

    def __getitem__(self, layer: int) -> LayerCache | WindowLayerCache | Int8LayerCache:
        return self.layers[layer]


class NoCache:
    """Nothing is remembered: the tokens of a scale see one another and no earlier scale.

    Stands in for a `KVCache`, and for the memory of each of its layers.
    """

    bytes = 0

    def select(self, rows: slice) -> None:
        """Nothing: no row leaves anything behind."""

    def __getitem__(self, layer: int) -> NoCache:
        return self

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        return attention(query, key, value, scale)


class BlockCausal:
    """All scales in one sequence, as in training: a token sees its own and all earlier scales.

    Runs one unmasked attention per scale, which costs less than one masked attention over all; only the
    first scales, of a few tokens each, share a masked one.
    """

    SHARED_TOKENS = 256
    """Most tokens of the first scales that go through one masked attention."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        ends = list(itertools.accumulate(self.lengths))
        self.shared_scales = sum(end <= self.SHARED_TOKENS for end in ends)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        first = self.lengths[: self.shared_scales]
        outputs, stop = [], sum(first)
        if stop:
            mask = self._mask(first, query.device)
            outputs.append(attention(query[:, :, :stop], key[:, :, :stop], value[:, :, :stop], scale, mask))
        for part in query[:, :, stop:].split(self.lengths[self.shared_scales :], dim=2):
            stop += part.shape[2]
            outputs.append(attention(part, key[:, :, :stop], value[:, :, :stop], scale))
        return torch.cat(outputs, dim=2)

    @staticmethod
    def _mask(lengths: Sequence[int], device: torch.device) -> Tensor:
        """[1, 1, N, N] True where a token's scale is not later than that of the row."""
        index = torch.cat(
            [
                torch.full((length,), scale, dtype=torch.int64, device=device)
                for scale, length in enumerate(lengths)
            ]
        )
        return (index[:, None] >= index[None, :])[None, None]


class BlockWindows:
    """All spans in one sequence, as in training of a model whose steps do not see all earlier ones.

    A token sees its own span and those that its span names. Neighbouring short spans that see the same
    earlier ones share one masked attention.

    Args:
        lengths: Tokens of each span.
        seen: For each span the earlier ones that it sees.
        padding: [R, tokens of span 0] bool, True where span 0 has a token; None where all of it are. Nobody
            sees the rest.
    """

    SHARED_TOKENS = 160
    """Most tokens of spans that go through one masked attention."""

    def __init__(
        self, lengths: Sequence[int], seen: Sequence[tuple[int, ...]], padding: Tensor | None = None
    ) -> None:
        self.lengths = tuple(lengths)
        self.seen = tuple(seen)
        self.padding = padding
        self.groups = self._group()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        keys, values = (part.split(self.lengths, dim=2) for part in (key, value))
        outputs, start = [], 0
        for group in self.groups:
            stop = start + sum(self.lengths[span] for span in group)
            visible = (*self.seen[group[0]], *group)
            seen_keys, seen_values = (
                torch.cat([part[span] for span in visible], dim=2) for part in (keys, values)
            )
            mask = self._mask(group, visible, query.device)
            outputs.append(attention(query[:, :, start:stop], seen_keys, seen_values, scale, mask))
            start = stop
        return torch.cat(outputs, dim=2)

    def _group(self) -> tuple[tuple[int, ...], ...]:
        """Spans in order, those that go through one attention together."""
        groups: list[tuple[int, ...]] = []
        for span, seen in enumerate(self.seen):
            last = groups[-1] if groups else ()
            tokens = self.lengths[span] + sum(self.lengths[other] for other in last)
            if last and self.seen[last[0]] == seen and tokens <= self.SHARED_TOKENS:
                groups[-1] = (*last, span)
            else:
                groups.append((span,))
        return tuple(groups)

    def _mask(self, group: tuple[int, ...], visible: tuple[int, ...], device: torch.device) -> Tensor | None:
        """[R or 1, 1, 1 or N, M] True where a group's token may see one of the visible spans'."""
        mask = None
        if len(group) > 1:
            rows, columns = (
                torch.cat(
                    [
                        torch.full((self.lengths[span],), span, dtype=torch.int64, device=device)
                        for span in spans
                    ]
                )
                for spans in (group, visible)
            )
            others = torch.tensor([span not in group for span in visible], dtype=torch.bool, device=device)
            lengths = torch.tensor([self.lengths[span] for span in visible], dtype=torch.int64, device=device)
            known = others.repeat_interleave(lengths)
            mask = (known | (rows[:, None] == columns))[None, None]
        if self.padding is not None and 0 in visible:
            # Span 0 comes first wherever it is seen.
            rest = sum(self.lengths[span] for span in visible[1:])
            padding = functional.pad(self.padding, (0, rest), value=True)[:, None, None]
            mask = padding if mask is None else mask & padding
        return mask
