"""Decoding of large pictures in strips of rows: the same pixels in a fraction of the memory.

A 3 x 3 convolution sees one row beyond a strip, so strips are computed with a row more on each side. A group
norm sees the whole plane, so its mean and variance are summed up over all strips first. Strips therefore fit
together without blending: only the rounding of sums differs from a picture that is decoded as a whole.
Between two residual blocks one plane is stored; what lies inside a block is computed twice, which costs time.

Shapes: B pictures, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

STRIP_BYTES = 2**23
"""Most bytes of one strip of one plane."""

STORED_BYTES = 2**27
"""An enlarged plane of at most so many bytes is stored rather than computed again and again."""

_SEEN = 2
"""Rows beyond a strip that a residual block sees: its two convolutions see one each."""


class ResidualBlock(Protocol):
    """Two convolutions of normalised inputs, added to a shortcut."""

    @property
    def norm1(self) -> nn.Module: ...
    @property
    def conv1(self) -> nn.Module: ...
    @property
    def norm2(self) -> nn.Module: ...
    @property
    def conv2(self) -> nn.Module: ...


class Upsample(Protocol):
    """A doubling of the sides, and a convolution."""

    @property
    def conv(self) -> nn.Module: ...


class Level(Protocol):
    """Residual blocks of one resolution."""

    @property
    def block(self) -> nn.ModuleList: ...
    @property
    def upsample(self) -> Upsample | None: ...


class Decoder(Protocol):
    """Convolutional decoders of Infinity and of the VAR family."""

    @property
    def conv_in(self) -> nn.Module: ...
    @property
    def mid(self) -> nn.Module: ...
    @property
    def up(self) -> Iterable[Level]: ...
    @property
    def norm_out(self) -> nn.Module: ...
    @property
    def conv_out(self) -> nn.Module: ...


class Plane(Protocol):
    """A plane of features whose rows are at hand, or computed on demand."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""
        ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, [B, C, stop - start, W]."""
        ...


class Stored:
    """A plane in memory, which can be overwritten strip by strip with what is computed from it."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.written = 0
        self.former = values[:, :, :0]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, channels, height, width = self.values.shape
        return batch, channels, height, width

    def rows(self, start: int, stop: int) -> Tensor:
        if start >= self.written:
            return self.values[:, :, start:stop]
        former = self.former[:, :, start - self.written :]
        return torch.cat([former, self.values[:, :, self.written : stop]], dim=2)

    def overwrite(self, rows: Tensor) -> None:
        """Replaces the next rows; the last former ones that the strip after them sees are kept."""
        stop = self.written + rows.shape[2]
        former = self.rows(max(stop - _SEEN, 0), stop).clone()
        self.values[:, :, self.written : stop] = rows
        self.written, self.former = stop, former


class Enlarged:
    """A plane of twice the sides: every position repeated, then convolved."""

    def __init__(self, source: Plane, convolution: nn.Module, channels: int) -> None:
        self.source, self.convolution = source, convolution
        batch, _, height, width = source.shape
        self.shape = (batch, channels, 2 * height, 2 * width)

    def rows(self, start: int, stop: int) -> Tensor:
        first, last = max(start - 1, 0), min(stop + 1, self.shape[2])
        coarse = self.source.rows(first // 2, (last + 1) // 2)
        fine = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        offset = first - 2 * (first // 2)
        convolved = self.convolution(fine[:, :, offset : offset + last - first])
        return _without_margin(convolved, first, start, stop)


class Convolved:
    """A plane that is normalised, activated and convolved."""

    def __init__(self, source: Plane, norm: nn.Module, convolution: nn.Module, channels: int) -> None:
        self.source, self.convolution = source, convolution
        batch, _, height, width = source.shape
        self.shape = (batch, channels, height, width)
        self.scale, self.shift = plane_norm(source, norm)

    def rows(self, start: int, stop: int) -> Tensor:
        first, last = max(start - 1, 0), min(stop + 1, self.shape[2])
        seen = self.source.rows(first, last)
        normed = (seen.float() * self.scale).add_(self.shift).to(seen.dtype)
        del seen
        convolved = self.convolution(functional.silu(normed, inplace=True))
        return _without_margin(convolved, first, start, stop)


def _without_margin(rows: Tensor, first: int, start: int, stop: int) -> Tensor:
    """Rows start to stop of rows that begin with `first`: those next to a false edge are cut off."""
    return rows[:, :, start - first : stop - first]


def strips(plane: Plane) -> Iterator[tuple[int, int]]:
    """Where the strips of a plane begin and end."""
    _, channels, height, width = plane.shape
    rows = max(STRIP_BYTES // (4 * channels * width), 2 * _SEEN)
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def plane_norm(plane: Plane, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a group norm multiplies a plane by and adds to it, each [B, C, 1, 1] in float32."""
    group_norm = norm if isinstance(norm, nn.GroupNorm) else norm.norm
    if not isinstance(group_norm, nn.GroupNorm):
        raise TypeError(f"A {type(group_norm).__name__} cannot be computed in strips; a GroupNorm can.")
    batch, channels, groups = plane.shape[0], plane.shape[1], group_norm.num_groups
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for start, stop in strips(plane):
        values = plane.rows(start, stop).float().reshape(batch, groups, -1)
        more = values.shape[2]
        variance, average = torch.var_mean(values, dim=2, correction=0)
        if not count:
            count, mean, squares = more, average, variance * more
            continue
        # Chan's rule for the moments of two samples together.
        difference, total = average - mean, count + more
        mean = mean + difference * (more / total)
        squares = squares + variance * more + difference.square() * (count * more / total)
        count = total
    inverse = (squares / count + group_norm.eps).rsqrt()
    spread, centre = (value.repeat_interleave(channels // groups, dim=1) for value in (inverse, mean))
    scale = spread * group_norm.weight.float()
    shift = group_norm.bias.float() - centre * scale
    return scale[:, :, None, None], shift[:, :, None, None]


def _output_channels(convolution: nn.Module) -> int:
    inner = convolution if isinstance(convolution, nn.Conv2d) else convolution.conv
    if not isinstance(inner, nn.Conv2d):
        raise TypeError(f"A {type(inner).__name__} cannot be computed in strips; a Conv2d can.")
    return inner.out_channels


def _run_block(block: ResidualBlock, source: Plane) -> Stored:
    """A residual block in strips; a stored plane of as many channels is overwritten."""
    channels = _output_channels(block.conv1)
    inner = Convolved(source, block.norm1, block.conv1, channels)
    outer = Convolved(inner, block.norm2, block.conv2, channels)
    shortcut = getattr(block, "nin_shortcut", None)
    if isinstance(source, Stored) and source.shape == outer.shape:
        target = source
    else:
        target = Stored(source.rows(0, 1).new_empty(outer.shape))
    for start, stop in strips(outer):
        rows, straight = outer.rows(start, stop), source.rows(start, stop)
        target.overwrite(rows + (straight if shortcut is None else shortcut(straight)))
    return Stored(target.values)


def _whole(plane: Plane) -> Tensor:
    """All rows of a plane."""
    if isinstance(plane, Stored):
        return plane.values
    return torch.cat([plane.rows(start, stop) for start, stop in strips(plane)], dim=2)


def _run_level(level: Level, plane: Plane) -> Plane:
    attentions: nn.ModuleList | None = getattr(level, "attn", None)
    if attentions:
        # Attention sees all positions, and has few: it is at the coarsest resolution only.
        values = _whole(plane)
        for block, attention in zip(level.block, attentions, strict=True):
            values = attention(block(values))
        plane = Stored(values)
    else:
        for block in level.block:
            plane = _run_block(cast(ResidualBlock, block), plane)
    upsample = level.upsample
    if upsample is None:
        return plane
    enlarged = Enlarged(plane, upsample.conv, _output_channels(upsample.conv))
    batch, channels, height, width = enlarged.shape
    if 4 * batch * channels * height * width <= STORED_BYTES:
        return Stored(_whole(enlarged))
    return enlarged


def decode_in_strips(decoder: Decoder, features: Tensor) -> Tensor:
    """Runs a decoder in strips.

    Args:
        decoder: The decoder of `InfinityVAE` or `VectorQuantizedVAE`.
        features: What its `forward` takes, [B, C, h, w].

    Returns:
        What its last convolution gives, [B, 3 p^2, H / p, W / p] for blocks of p x p pixels.
    """
    plane: Plane = Stored(decoder.mid(decoder.conv_in(features)))
    for level in reversed(list(decoder.up)):
        plane = _run_level(level, plane)
    return _whole(Convolved(plane, decoder.norm_out, decoder.conv_out, _output_channels(decoder.conv_out)))
