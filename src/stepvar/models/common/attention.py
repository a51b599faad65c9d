"""Query, key and value projection of the self-attention that Infinity, HART and VAR share.

Source: FoundationVision/VAR, models/basic_var.py.
Shapes: R rows, N tokens, C width, H heads, c = C / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stepvar.generation.tokens import Tokens
from stepvar.models.common.base import MultiMethodModule, through_forward
from stepvar.models.common.layers import Linear, linear_with_bias

LARGEST_LOG_SCALE = math.log(100)
"""Cosine attention's learned log scale is clamped here."""


def rotary_of(tokens: Tokens) -> Tensor:
    """The rotary table of tokens.

    Raises:
        ValueError: When a session has given them none.
    """
    if tokens.positions is None:
        raise ValueError(f"The tokens of scale {tokens.scale.index} have no rotary table.")
    return tokens.positions


class ProjectedAttention(MultiMethodModule):
    """Projections and head scales of self-attention; queries and values have a bias, keys have none.

    Args:
        width, heads: C, H.
        cosine: Queries and keys are normalised, with a learned scale per head; else plain products.
    """

    def __init__(self, width: int, heads: int, cosine: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4))) if cosine else None
        self.output = Linear(width, width)
        # Without cosines a quarter of the usual scale: the weights were trained with it.
        self.softmax_scale = 1.0 if cosine else 0.25 / math.sqrt(width // heads)

    @through_forward
    def constants(self) -> tuple[Tensor, Tensor | None]:
        """Tensors that do not depend on the input, computed once a generation.

        Returns:
            The bias of the joint projection [3 C], and the factors of normalised queries and keys [2, H, 1]
            in float32, None without cosine attention.
        """
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        if self.log_scale is None:
            return bias, None
        scale = self.log_scale.float().clamp_max(LARGEST_LOG_SCALE).exp().view(1, -1, 1)
        return bias, torch.cat([scale, torch.ones_like(scale)])

    def project(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [R, N, C] -> queries, keys and values, [R, N, 3, H, c]."""
        return linear_with_bias(self.qkv, hidden, bias).unflatten(-1, (3, self.heads, -1))

    def merge_heads(self, attended: Tensor) -> Tensor:
        """Attended values [R, H, N, c] -> outputs [R, N, C]."""
        outputs: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return outputs
