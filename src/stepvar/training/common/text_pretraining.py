"""Pretraining of the text encoder by word labels: every word learns the attributes of its object.

Infinity's text encoder is a pretrained language model. A fresh one would have to learn from pictures alone
which colour belongs to which shape and which shape is named first, and needs a hundred thousand of them for
it; prompts without pictures cost next to nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from stepvar.scenes.text_encoder import build_text_encoder, build_word_tokenizer
from stepvar.training.common.precision import mixed_precision

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a word that belongs to no object."""


@dataclass(frozen=True)
class TextPretraining:
    """Settings.

    Attributes:
        steps: How many.
        prompts: Of every step.
        learning_rate: Peak, of AdamW; it falls linearly to zero.
        bias_learning_rate: The same for the biases of relative positions.
        distillation_weight: Weight of the squared distance to the features before this training, so that
            a transformer trained on those need not learn them anew; 0 for fresh weights.
        seed: Of the prompts and the classifier's weights.
    """

    steps: int = 2000
    prompts: int = 96
    learning_rate: float = 2e-3
    bias_learning_rate: float = 5e-2
    distillation_weight: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class LabelledPrompts:
    """Prompts to learn from, with labels for their words.

    Attributes:
        classes: Number of classes of each label, by name.
        draw: Draws a prompt, given random numbers and its place in a batch, and the labels of each of its
            words in the order of `classes`; `IGNORED` for words that belong to no object.
    """

    classes: Mapping[str, int]
    draw: Callable[[np.random.Generator, int], tuple[str, list[list[int]]]]


def class_of(value: str | None, values: Sequence[str]) -> int:
    """Index of a value; one past the last for an attribute that the prompt leaves open."""
    return len(values) if value is None else values.index(value)


def pretrain_text_encoder(
    encoder: T5EncoderModel,
    words: PreTrainedTokenizerFast,
    prompts: LabelledPrompts,
    settings: TextPretraining | None = None,
) -> dict[str, float]:
    """Trains an encoder in place, on prompts of the training split.

    Args:
        encoder: The text encoder.
        words: Its tokenizer.
        prompts: To learn from.
        settings: See `TextPretraining`.

    Returns:
        Accuracy of each label over the last steps.
    """
    settings = settings or TextPretraining()
    random = np.random.default_rng([settings.seed, 7])
    torch.manual_seed(settings.seed)
    before = copy.deepcopy(encoder).eval().requires_grad_(False)
    head = nn.Linear(encoder.config.d_model, sum(prompts.classes.values()))
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(_groups(encoder, head, settings), betas=(0.9, 0.98))
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, settings.steps)
    accuracy = torch.zeros(len(prompts.classes))
    for step in range(settings.steps):
        batch, labels = _draw(words, random, settings.prompts, prompts)
        with mixed_precision(encoder.device):
            states = encoder(**batch).last_hidden_state
            logits = head(states)
        loss, right = _evaluate(logits.float(), labels, prompts.classes)
        if settings.distillation_weight > 0:
            with torch.no_grad(), mixed_precision(encoder.device):
                known = before(**batch).last_hidden_state
            loss = loss + settings.distillation_weight * functional.mse_loss(states.float(), known.float())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        decay.step()
        accuracy = right if step == 0 else accuracy.lerp(right, 0.05)
        if step % 100 == 0:
            logger.info("text step %d: loss %.3f, accuracy %.3f", step, loss.item(), accuracy.mean().item())
    return dict(zip(prompts.classes, accuracy.tolist(), strict=True))


def pretrained_text_encoder(folder: Path, vocabulary: Sequence[str], prompts: LabelledPrompts) -> Path:
    """Trains a fresh text encoder into a folder unless it is there already; returns the folder."""
    if not (folder / "config.json").exists():
        words = build_word_tokenizer(vocabulary)
        torch.manual_seed(0)
        encoder = build_text_encoder(len(words))
        accuracy = pretrain_text_encoder(encoder, words, prompts)
        logger.info("accuracy: %s", ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()))
        encoder.save_pretrained(folder)
    return folder


def _groups(
    encoder: T5EncoderModel, head: nn.Module, settings: TextPretraining
) -> list[dict[str, float | list[nn.Parameter]]]:
    """The biases of relative positions learn faster than the rest.

    They distinguish left from right, on which every label depends, and must grow to the size of a logit.
    """
    biases = [value for name, value in encoder.named_parameters() if "relative_attention_bias" in name]
    others = [value for name, value in encoder.named_parameters() if "relative_attention_bias" not in name]
    return [
        {"params": [*others, *head.parameters()], "lr": settings.learning_rate},
        {"params": biases, "lr": settings.bias_learning_rate, "weight_decay": 0.0},
    ]


def _draw(
    words: PreTrainedTokenizerFast, random: np.random.Generator, count: int, prompts: LabelledPrompts
) -> tuple[dict[str, Tensor], Tensor]:
    """Prompts as the encoder takes them, and their labels [B, T, labels]."""
    texts, known = zip(*(prompts.draw(random, place) for place in range(count)), strict=True)
    batch = words(list(texts), padding=True, return_tensors="pt")
    labels = torch.full((*batch.input_ids.shape, len(prompts.classes)), IGNORED, dtype=torch.int64)
    for row, word_labels in enumerate(known):
        labels[row, : len(word_labels)] = torch.tensor(word_labels)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, labels


def _evaluate(logits: Tensor, labels: Tensor, classes: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Sum of the labels' cross entropies, and the accuracy of each, over the words of objects."""
    losses, accuracies = [], []
    for label, scores in enumerate(logits.split(list(classes.values()), dim=-1)):
        wanted = labels[..., label].flatten()
        losses.append(functional.cross_entropy(scores.flatten(0, 1), wanted, ignore_index=IGNORED))
        counted = wanted != IGNORED
        accuracies.append((scores.flatten(0, 1).argmax(dim=-1) == wanted)[counted].float().mean())
    return torch.stack(losses).sum(), torch.stack(accuracies).detach()
