"""Layers of the transformers: linear, norms, modulation, feed-forward, rotary positions, padding masks.

Shapes: R rows, N tokens, C width, H heads, c = C / H channels of a head, T text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

_TOKENS_IN_CACHE = 512
"""How many tokens a CPU's cache holds at a time, in float32."""


class Linear(nn.Linear):
    """`nn.Linear` that takes inputs of any number format, and computes in that of its weights.

    The format is read inside the layer, where hooks that store weights in another format have brought them
    back. A layer that quantisation puts in its place may ask for one format: blocks give the model's own.
    """

    def forward(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        """inputs [..., C] -> [..., C'].

        Args:
            bias: [C'] of a layer without one of its own, added inside the product, which rounds once.
        """
        inputs = inputs.to(self.weight.dtype)
        return functional.linear(inputs, self.weight, self.bias if bias is None else bias)


def linear_with_bias(layer: nn.Module, inputs: Tensor, bias: Tensor) -> Tensor:
    """Applies a `Linear`, or whatever adapters and quantisation have made of it, and adds a bias.

    Args:
        inputs: [..., C] in the number format of the model.
        bias: [C'].
    """
    own = getattr(layer, "base_layer", layer)  # where adapters keep the layer that they wrap
    outputs: Tensor = layer(inputs, bias) if isinstance(own, Linear) else layer(inputs) + bias
    return outputs


def embed_index(embedding: nn.Embedding, index: int, device: torch.device) -> Tensor:
    """One row [C] of an embedding in float32, looked up by the embedding itself."""
    row: Tensor = embedding(torch.full((), index, dtype=torch.int64, device=device))
    return row.float()


def apply_in_chunks(
    function: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, positions: Tensor
) -> Tensor:
    """A chain of element-wise steps in float32; a CPU takes as many tokens at a time as its cache holds.

    Of large maps, every step of the chain otherwise goes through memory: four times slower.

    Args:
        function: Takes tokens [R, n, ...] in float32 and their positions [R or 1, n, ...]; keeps the shape.
        inputs: [R, N, ...].
        positions: [R or 1, N, ...].

    Returns:
        The results in the number format of the inputs.
    """
    count = inputs.shape[1]
    if inputs.device.type != "cpu" or count <= _TOKENS_IN_CACHE or torch.compiler.is_compiling():
        return function(inputs.float(), positions).to(inputs.dtype)
    output = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    for start in range(0, count, _TOKENS_IN_CACHE):
        chunk = slice(start, start + _TOKENS_IN_CACHE)
        output[:, chunk] = function(inputs[:, chunk].float(), positions[:, chunk])
    return output


def modulated_norm(hidden: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """AdaLN: LayerNorm(hidden) x scale + shift, in float32.

    Args:
        hidden: [R, N, C].
        scale: [R, 1, C], the 1 of "1 + scale" already added.
        shift: [R, 1, C].
    """
    hidden = hidden.float()
    return torch.addcmul(shift, functional.layer_norm(hidden, hidden.shape[-1:], eps=eps), scale)


class BlockModulation(NamedTuple):
    """AdaLN of a block with two modulated branches, each [R, 1, C] in float32; scales have their 1 added."""

    attention_gate: Tensor
    feed_forward_gate: Tensor
    attention_scale: Tensor
    feed_forward_scale: Tensor
    attention_shift: Tensor
    feed_forward_shift: Tensor

    @classmethod
    def unpack(cls, values: Tensor) -> BlockModulation:
        """From [R, 1, 6, C] in the order gates, scales without their 1, shifts."""
        gate1, gate2, scale1, scale2, shift1, shift2 = values.unbind(2)
        return cls(gate1, gate2, scale1 + 1.0, scale2 + 1.0, shift1, shift2)

    def of_rows(self, rows: slice) -> BlockModulation:
        """The modulation of some rows alone."""
        return BlockModulation(*(part[rows] for part in self))


def scale_and_shift(layer: nn.Module, condition: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """AdaLN of an output head: condition [R, C] -> (1 + scale, shift), each [R, 1, C] in float32.

    Args:
        layer: The linear layer that makes both.
        dtype: Number format that it is given.
    """
    scale, shift = layer(functional.silu(condition).to(dtype)).float().unsqueeze(1).chunk(2, dim=-1)
    return scale + 1.0, shift


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` computed in float32, whatever the number formats of weights and input."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.layer_norm(
            inputs.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


class RMSNorm(nn.Module):
    """x / rms(x) x weight, computed in float32.

    Args:
        channels: Width of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.rms_norm(inputs.float(), self.weight.shape, self.weight.float(), self.eps)


def sinusoid(numbers: Tensor, channels: int, theta: float = 10000.0) -> Tensor:
    """Waves of numbers [...]: cosines, then sines, of channels / 2 frequencies, [..., channels] float32."""
    half = channels // 2
    order = torch.arange(half, device=numbers.device).float()
    angles = numbers.float()[..., None] * torch.exp(-math.log(theta) * order / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FeedForward(nn.Module):
    """Linear, tanh-approximate GELU, linear."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden_width)
        self.down = Linear(hidden_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.down(functional.gelu(self.up(hidden), approximate="tanh"))
        return outputs


class GatedFeedForward(nn.Module):
    """SwiGLU: two linears, of which one gates the other, then a third; without biases."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden_width, bias=False)
        self.up = Linear(width, hidden_width, bias=False)
        self.down = Linear(hidden_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.down(functional.silu(self.gate(hidden)) * self.up(hidden))
        return outputs


def rotary_table_2d(
    rows: Tensor, columns: Tensor, head_dim: int, theta: float = 10000.0, stretch: float = 1.0
) -> Tensor:
    """Rotary table of tokens in a plane: the first half of a head's channels turns with the row.

    Args:
        rows, columns: [N] positions.
        head_dim: c, divisible by 4.
        theta: Base of the frequencies.
        stretch: Multiplies the frequencies.

    Returns:
        [N, c / 2] complex64 of length one, an entry per pair of channels.

    Source: `precompute_rope2d_freqs_grid` of FoundationVision/Infinity, models/basic.py.
    """
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, device=rows.device).float() / half
    frequencies = 1.0 / theta**exponents * stretch
    angles = torch.cat([rows.float()[:, None] * frequencies, columns.float()[:, None] * frequencies], dim=1)
    return torch.complex(angles.cos(), angles.sin())


def rotate(inputs: Tensor, rotary: Tensor) -> Tensor:
    """Rotates adjacent pairs of channels (2i, 2i + 1) by the i-th angle.

    One complex product: about twenty times faster on a CPU than four real ones and a stack.

    Args:
        inputs: [R, N, ..., c] in float32.
        rotary: [R or 1, N, c / 2] complex64.
    """
    table = rotary.view(*rotary.shape[:2], *(1,) * (inputs.dim() - 3), rotary.shape[-1])
    if torch.compiler.is_compiling():
        # The compiler fuses real products, and knows no complex ones.
        cosine, sine = torch.view_as_real(table).unbind(-1)
        even, odd = inputs[..., 0::2], inputs[..., 1::2]
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)
    pairs = torch.view_as_complex(inputs.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table).flatten(-2)


def padding_mask(lengths: list[int], longest: int, device: torch.device) -> Tensor | None:
    """[R, 1, 1, T] True where a row has a token; None when all rows are equally long.

    Without a mask every attention backend stays usable, so equal lengths cost nothing.
    """
    if all(length == longest for length in lengths):
        return None
    sizes = torch.tensor(lengths, dtype=torch.int64, device=device)
    return (torch.arange(longest, device=device) < sizes[:, None])[:, None, None, :]
