"""A transformer and the small text encoder that is trained with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from stepvar.scenes.text_encoder import build_text_encoder, build_word_tokenizer

Transformer = TypeVar("Transformer", bound=nn.Module)

FINE_SCALE = 256
"""Tokens from which on a scale is fine, and may be trained on some of them."""


class Examples(Protocol):
    """Encoded scenes to learn from.

    Attributes:
        features: [S, d, ...] what the encoder says of each scene.
        objects: [S, ...] bool, tokens of the last scale that lie on an object.
    """

    features: Tensor
    objects: Tensor

    def __len__(self) -> int: ...

    def write(self, random: np.random.Generator, index: int) -> str:
        """What a scene shows, in words chosen anew."""
        ...


class PromptedModel(nn.Module, Generic[Transformer]):
    """Transformer and text encoder, trained together.

    Args:
        transformer: With fresh weights.
        vocabulary: Words of the prompts.
    """

    def __init__(self, transformer: Transformer, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.words = build_word_tokenizer(vocabulary)
        self.text_encoder = build_text_encoder(len(self.words))
        self.transformer = transformer

    def start_from(self, folder: Path) -> None:
        """Takes the weights of a finished model, so that training goes on where it was packaged.

        Args:
            folder: What `stepvar.training.pictures.package.package` wrote.
        """
        self.take_text_encoder(folder / "text_encoder")
        transformer = type(self.transformer).from_pretrained(
            folder / "transformer", torch_dtype=torch.float32
        )
        self.transformer.load_state_dict(self.fit(transformer.state_dict()))

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A transformer's weights as this one takes them, which may be of another size."""
        return state

    def take_text_encoder(self, folder: Path) -> None:
        """Takes the weights of a text encoder that was trained before.

        Args:
            folder: What its `save_pretrained` wrote.
        """
        finished = type(self.text_encoder).from_pretrained(folder, torch_dtype=torch.float32)
        self.text_encoder.load_state_dict(finished.state_dict())

    def unconditional(self, tokens: int) -> Tensor:
        """The learned features that stand for no prompt, [tokens, E]."""
        raise NotImplementedError

    def encode_text(self, prompts: Sequence[str], dropped: Sequence[bool]) -> list[Tensor]:
        """One [T_i, E] a prompt; dropped ones are replaced by what stands for none, as guidance needs it."""
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

    def losses(
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
        raise NotImplementedError


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


def weigh_kept(weights: Sequence[Tensor], kept: Sequence[Tensor | None]) -> list[Tensor]:
    """Weights of the tokens that run at each step: those drawn by their weight weigh alike."""
    return [
        weight if chosen is None else torch.ones_like(weight[:, : chosen.shape[1]])
        for weight, chosen in zip(weights, kept, strict=True)
    ]
