"""Encoded prompts as a caller gives them: one tensor a prompt, or one padded tensor with its mask.

Letters: B prompts, T tokens, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PromptEmbeds = Tensor | Sequence[Tensor]
"""[B, T, E] with a mask [B, T], [T, E] of one prompt, or one [T_i, E] a prompt."""


def split_embeds(
    embeds: PromptEmbeds | None, mask: Tensor | None, channels: int, longest: int, name: str = "prompt_embeds"
) -> list[Tensor] | None:
    """Encoded prompts without padding.

    Args:
        embeds: As the caller gave them; None where texts are to be encoded.
        mask: [B, T], where a prompt has a token; only beside one tensor.
        channels: E that the model reads.
        longest: Most tokens of a prompt.
        name: Of the argument, for messages.

    Returns:
        One [T_i, E] a prompt; None without embeddings.

    Raises:
        ValueError: When a shape is not what the model reads, or the mask does not fit.
    """
    mask_name = f"{name.removesuffix('_embeds')}_attention_mask"
    if embeds is None:
        if mask is not None:
            raise ValueError(f"{mask_name} was given without {name}: give both, or none.")
        return None
    if isinstance(embeds, Tensor):
        rows = _masked_rows(embeds, mask, name, mask_name)
    else:
        if mask is not None:
            raise ValueError(f"{mask_name} needs {name} as one tensor [B, T, E]: leave it out, or pad them.")
        if not isinstance(embeds, Sequence):
            raise ValueError(f"{name} is of type {type(embeds).__name__}; give one tensor, or one a prompt.")
        rows = list(embeds)
    for row in rows:
        if not isinstance(row, Tensor) or row.dim() != 2 or not row.is_floating_point():
            shape = list(row.shape) if isinstance(row, Tensor) else type(row).__name__
            raise ValueError(f"{name} has an entry of {shape}; give floats of [tokens, {channels}] a prompt.")
        if row.shape[1] != channels:
            raise ValueError(
                f"{name} has {row.shape[1]} channels, but the model reads {channels}: encode the prompts "
                "with the text encoder it was trained with."
            )
        if not 0 < len(row) <= longest:
            raise ValueError(f"{name} has a prompt of {len(row)} tokens; the model reads 1 to {longest}.")
    return [row.float() for row in rows]


def full_mask(embeds: Tensor, mask: Tensor | None, mask_name: str) -> Tensor:
    """The mask of padded prompts [B, T, E] as bool [B, T]; without one, every place has a token.

    Raises:
        ValueError: When it has another shape, or leaves a prompt empty.
    """
    if mask is None:
        return torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    if mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"{mask_name} is {list(mask.shape)}; embeddings of {list(embeds.shape)} need "
            f"{list(embeds.shape[:2])}."
        )
    return mask.to(embeds.device).bool()


def _masked_rows(embeds: Tensor, mask: Tensor | None, name: str, mask_name: str) -> list[Tensor]:
    if embeds.dim() == 2:
        embeds, mask = embeds[None], None if mask is None else mask.view(1, -1)
    if embeds.dim() != 3:
        raise ValueError(f"{name} is {list(embeds.shape)}; give one tensor [B, T, E], or a list of [T_i, E].")
    if mask is None:
        return list(embeds)
    return [row[kept] for row, kept in zip(embeds, full_mask(embeds, mask, mask_name), strict=True)]
