"""Training of models of bits: tokens left out of a step, and the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor


def take_tokens(values: Tensor, chosen: Tensor | None) -> Tensor:
    """values [B, N, C] at the tokens chosen [B, K], all of them for None -> [B, K or N, C]."""
    if chosen is None:
        return values
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))


def bit_losses(
    logits: Sequence[Tensor], bits: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """Mean cross entropy per bit of each scale.

    Args:
        logits: One [B, N, D, 2] a scale.
        bits: One [B, N, D] a scale, the labels.
        weights: One [B, N] a scale, the weights of the tokens; all alike by default.

    Returns:
        [scales] in nats.
    """
    losses = []
    for index, (scale_logits, labels) in enumerate(zip(logits, bits, strict=True)):
        difference = scale_logits[..., 1] - scale_logits[..., 0]
        each = functional.binary_cross_entropy_with_logits(difference, labels.float(), reduction="none")
        if weights is None:
            losses.append(each.mean())
        else:
            losses.append((each.mean(dim=-1) * weights[index]).sum() / weights[index].sum())
    return torch.stack(losses)
