"""Encoded prompts as a pipeline hands them out: what a call takes instead of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class EncodedPrompts(NamedTuple):
    """Encoded prompts; its fields are arguments of a call, so that `pipe(**encoded._asdict())` draws them.

    Letters: B prompts, T tokens of the longest, E channels.

    Attributes:
        prompt_embeds: [B, T, E] float32.
        prompt_attention_mask: [B, T] int64, 1 where a prompt has a token.
        negative_prompt_embeds, negative_prompt_attention_mask: Of the negative prompts; None without any.
    """

    prompt_embeds: Tensor
    prompt_attention_mask: Tensor
    negative_prompt_embeds: Tensor | None
    negative_prompt_attention_mask: Tensor | None

    @classmethod
    def of(
        cls, positive: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor] | None, repeats: int
    ) -> EncodedPrompts:
        """Of padded texts and masks, each repeated so often, one after the other."""
        embeds, mask = (part.repeat_interleave(repeats, 0) for part in positive)
        if negative is None:
            return cls(embeds, mask, None, None)
        return cls(embeds, mask, *(part.repeat_interleave(repeats, 0) for part in negative))


class PooledPrompts(NamedTuple):
    """The same of two text encoders, with what the second one pools.

    Attributes:
        prompt_embeds, prompt_attention_mask: As in `EncodedPrompts`.
        negative_prompt_embeds, negative_prompt_attention_mask: Likewise.
        pooled_prompt_embeds: [B, P] float32.
        negative_pooled_prompt_embeds: Of the negative prompts; None without any.
    """

    prompt_embeds: Tensor
    prompt_attention_mask: Tensor
    negative_prompt_embeds: Tensor | None
    negative_prompt_attention_mask: Tensor | None
    pooled_prompt_embeds: Tensor
    negative_pooled_prompt_embeds: Tensor | None


def padded_prompts(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Encoded prompts, one [T_i, E] each, as one tensor [B, T, E] and its mask [B, T]."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    embeds = pad_sequence(list(rows), batch_first=True)
    places = torch.arange(embeds.shape[1], device=embeds.device)
    return embeds, (places[None] < lengths[:, None]).to(torch.int64)
