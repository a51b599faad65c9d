"""Transformer and the small text encoder that is trained with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.scenes.text_encoder import build_text_encoder, build_word_tokenizer

Transformer = TypeVar("Transformer", InfinityTransformer, InfinityStarTransformer)

FINE_SCALE = 256
"""Tokens from which on a scale is fine, and may be trained on some of them."""


class PromptedModel(nn.Module, ABC, Generic[Transformer]):
    """Transformer and text encoder, trained together.

    Args:
        transformer: With fresh weights.
        vocabulary: Words of the prompts.
    """

    def __init__(self, transformer: Transformer, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.words = build_word_tokenizer(vocabulary)
        self.text_encoder = build_text_encoder(len(self.words))
        self.transformer: Transformer = transformer

    def load_packaged(self, folder: Path) -> None:
        """Loads the weights of a finished model, so that training continues from it.

        Args:
            folder: As written by `stepvar.training.common.packaging.package`.
        """
        self.load_text_encoder(folder / "text_encoder")
        transformer = type(self.transformer).from_pretrained(
            folder / "transformer", torch_dtype=torch.float32
        )
        self.transformer.load_state_dict(self.adapt(transformer.state_dict()))

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a transformer, which may be of another size, as this one loads them."""
        return state

    def load_text_encoder(self, folder: Path) -> None:
        """Loads the weights of a text encoder.

        Args:
            folder: As written by its `save_pretrained`.
        """
        finished = type(self.text_encoder).from_pretrained(folder, torch_dtype=torch.float32)
        self.text_encoder.load_state_dict(finished.state_dict())

    @abstractmethod
    def unconditional(self, tokens: int) -> Tensor:
        """The learned features that replace a dropped prompt, [tokens, E]."""

    def encode_text(self, prompts: Sequence[str], dropped: Sequence[bool]) -> list[Tensor]:
        """Text features of each prompt, [T_i, E]; dropped ones are replaced, as guidance needs it."""
        device = next(self.text_encoder.parameters()).device
        batch = self.words(list(prompts), padding=True, return_tensors="pt").to(device)
        states = self.text_encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        lengths = batch.attention_mask.sum(dim=1).tolist()
        return [
            self.unconditional(length).to(state.dtype) if drop else state[:length]
            for state, length, drop in zip(states, lengths, dropped, strict=True)
        ]

    @abstractmethod
    def forward(
        self,
        features: Tensor,
        weights: Tensor,
        prompts: Sequence[str],
        dropped: Sequence[bool],
        scales: int | None,
        flip: Tensor,
        share: float = 1.0,
        compiled: bool = False,
    ) -> Tensor:
        """Cross entropy per bit of every step of the first `scales` scales, in nats.

        Args:
            features: [B, d, ...] encoder features; of videos all latent frames or the first ones.
            weights: [B, ...] weight of every token of the last scale.
            prompts: B prompts.
            dropped: Which examples are trained without their text.
            scales: Scales to run, None for all.
            flip: [B] share of flipped bits of each example.
            share: Of the tokens of fine scales to run, drawn by weight.
            compiled: Whether torch.compile fuses the blocks.
        """


def draw_tokens(weights: Tensor, share: float) -> Tensor | None:
    """Some tokens of a fine scale, drawn by weight without replacement; None for a scale that runs whole.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006).

    Args:
        weights: [B, N].
        share: Of the N tokens to draw.

    Returns:
        Indices [B, K], ascending.
    """
    count = weights.shape[1]
    if share >= 1.0 or count < FINE_SCALE:
        return None
    keys = torch.rand_like(weights).log() / weights
    return keys.topk(max(round(share * count), 1), dim=1).indices.sort(dim=1).values


def loss_weights(weights: Sequence[Tensor], drawn: Sequence[Tensor | None]) -> list[Tensor]:
    """Weights in the loss of the tokens that run at each step: equal where they were drawn by weight."""
    return [
        weight if chosen is None else torch.ones_like(weight[:, : chosen.shape[1]])
        for weight, chosen in zip(weights, drawn, strict=True)
    ]
