"""Pretraining of the text encoder: every word learns about its group of objects before any picture is seen.

Infinity's text encoder comes to its training knowing language. Ours would have to find out from pictures
alone which colour belongs to which shape and which shape is named first, and takes a hundred thousand of them
for it; prompts without pictures cost next to nothing.
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

from stepvar.scenes import CATEGORIES, Group, SceneSpec, sample_prompt, split_words
from stepvar.scenes.spec import COLOURS, MAXIMUM_OBJECTS, RELATIONS, SHAPES, SIZES, TEXTURES
from stepvar.scenes.text_encoder import build_text_encoder, build_word_tokenizer
from stepvar.scenes.vocabulary import PLURAL_WORDS, SHAPE_WORDS
from stepvar.training.precision import mixed_precision

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of what a word need not know: its group's index where it belongs to none."""

QUESTIONS: dict[str, int] = {
    "index": 2,
    "place": len(RELATIONS) + 1,
    "shape": len(SHAPES),
    "colour": len(COLOURS) + 1,
    "texture": len(TEXTURES) + 1,
    "size": len(SIZES) + 1,
    "count": MAXIMUM_OBJECTS,
    "others": MAXIMUM_OBJECTS,
}
"""What every word of a group is asked about it, and how many answers there are."""

_NOUNS = SHAPE_WORDS.keys() | PLURAL_WORDS.keys()
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class TextPretraining:
    """Settings.

    Attributes:
        steps: How many.
        prompts: Of every step.
        learning_rate: Peak, of AdamW; it falls linearly to zero.
        bias_learning_rate: The same for the biases of relative positions.
        stay: Weight of the squared distance to the features that the encoder gave at first, so that a
            transformer which knows them need not learn them anew; 0 for fresh weights.
        seed: Of the prompts and the questions' weights.
    """

    steps: int = 2000
    prompts: int = 96
    learning_rate: float = 2e-3
    bias_learning_rate: float = 5e-2
    stay: float = 0.0
    seed: int = 0


def answers(prompt: str, spec: SceneSpec) -> list[list[int]]:
    """What every word of a prompt is to know, in the order of `QUESTIONS`.

    Words up to the first noun belong to the first group, those up to the second noun to the second one.

    Args:
        prompt: As written for `spec`.
        spec: What it asks for.
    """
    labels, group = [], 0
    for word in split_words(prompt):
        known = group < len(spec.groups)
        labels.append(_about(spec, group) if known else [IGNORED] * len(QUESTIONS))
        group += word in _NOUNS
    return labels


@dataclass(frozen=True)
class Quiz:
    """Prompts to learn from.

    Attributes:
        questions: What every word is asked, and how many answers there are.
        ask: Draws a prompt, for random numbers and its place in a batch, and the answers of each of its words
            in the order of the questions.
    """

    questions: Mapping[str, int]
    ask: Callable[[np.random.Generator, int], tuple[str, list[list[int]]]]


def _ask_about_picture(random: np.random.Generator, place: int) -> tuple[str, list[list[int]]]:
    prompt = sample_prompt(random, CATEGORIES[place % len(CATEGORIES)])
    return prompt.text, answers(prompt.text, prompt.spec)


PICTURES = Quiz(QUESTIONS, _ask_about_picture)


def _about(spec: SceneSpec, index: int) -> list[int]:
    group = spec.groups[index]
    place = spec.relation if index == 0 or spec.relation is None else _OPPOSITE[spec.relation]
    others = sum(other.count for other in spec.groups) - group.count
    return [index, number(place, RELATIONS), *_looks(group), group.count - 1, others]


def _looks(group: Group) -> list[int]:
    # Every prompt names its shapes, so their numbers need no place for an open one.
    open_ones = ((group.colour, COLOURS), (group.texture, TEXTURES), (group.size, SIZES))
    return [SHAPES.index(group.shape), *(number(value, values) for value, values in open_ones)]


def number(value: str | None, values: Sequence[str]) -> int:
    """Place of a value; one past the last for an open one."""
    return len(values) if value is None else values.index(value)


def pretrain_text_encoder(
    encoder: T5EncoderModel,
    words: PreTrainedTokenizerFast,
    settings: TextPretraining | None = None,
    quiz: Quiz = PICTURES,
) -> dict[str, float]:
    """Trains an encoder in place, on prompts of the training split.

    Args:
        encoder: The text encoder.
        words: Its tokenizer.
        settings: See `TextPretraining`.
        quiz: What it learns.

    Returns:
        Share of right answers to every question over the last steps.
    """
    settings = settings or TextPretraining()
    random = np.random.default_rng([settings.seed, 7])
    torch.manual_seed(settings.seed)
    before = copy.deepcopy(encoder).eval().requires_grad_(False)
    questions = nn.Linear(encoder.config.d_model, sum(quiz.questions.values()))
    parameters = [*encoder.parameters(), *questions.parameters()]
    optimiser = torch.optim.AdamW(_groups(encoder, questions, settings), betas=(0.9, 0.98))
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, settings.steps)
    right = torch.zeros(len(quiz.questions))
    for step in range(settings.steps):
        batch, labels = _draw(words, random, settings.prompts, quiz)
        with mixed_precision(encoder.device):
            states = encoder(**batch).last_hidden_state
            logits = questions(states)
        loss, share = _judge(logits.float(), labels, quiz)
        if settings.stay > 0:
            with torch.no_grad(), mixed_precision(encoder.device):
                known = before(**batch).last_hidden_state
            loss = loss + settings.stay * functional.mse_loss(states.float(), known.float())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        decay.step()
        right = share if step == 0 else right.lerp(share, 0.05)
        if step % 100 == 0:
            logger.info("text step %d: loss %.3f, right answers %.3f", step, loss.item(), right.mean().item())
    return dict(zip(quiz.questions, right.tolist(), strict=True))


def pretrained_text_encoder(folder: Path, vocabulary: Sequence[str], quiz: Quiz = PICTURES) -> Path:
    """Writes a text encoder that knows a grammar to a folder, which is made once; returns the folder."""
    if not (folder / "config.json").exists():
        words = build_word_tokenizer(vocabulary)
        torch.manual_seed(0)
        encoder = build_text_encoder(len(words))
        shares = pretrain_text_encoder(encoder, words, quiz=quiz)
        logger.info("right answers: %s", ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
        encoder.save_pretrained(folder)
    return folder


def _groups(
    encoder: T5EncoderModel, questions: nn.Module, settings: TextPretraining
) -> list[dict[str, float | list[nn.Parameter]]]:
    """The biases of relative positions learn faster than the rest.

    They tell left from right, on which everything here depends, and must grow to the size of a logit.
    """
    biases = [value for name, value in encoder.named_parameters() if "relative_attention_bias" in name]
    others = [value for name, value in encoder.named_parameters() if "relative_attention_bias" not in name]
    return [
        {"params": [*others, *questions.parameters()], "lr": settings.learning_rate},
        {"params": biases, "lr": settings.bias_learning_rate, "weight_decay": 0.0},
    ]


def _draw(
    words: PreTrainedTokenizerFast, random: np.random.Generator, count: int, quiz: Quiz
) -> tuple[dict[str, Tensor], Tensor]:
    """Prompts as the encoder takes them, and their answers [B, T, questions]."""
    prompts, known = zip(*(quiz.ask(random, place) for place in range(count)), strict=True)
    batch = words(list(prompts), padding=True, return_tensors="pt")
    labels = torch.full((*batch.input_ids.shape, len(quiz.questions)), IGNORED)
    for row, rows in enumerate(known):
        labels[row, : len(rows)] = torch.tensor(rows)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, labels


def _judge(logits: Tensor, labels: Tensor, quiz: Quiz) -> tuple[Tensor, Tensor]:
    """Mean cross entropy, and share of right answers to every question, over the words of groups."""
    losses, shares = [], []
    for question, each in enumerate(logits.split(list(quiz.questions.values()), dim=-1)):
        wanted = labels[..., question].flatten()
        losses.append(functional.cross_entropy(each.flatten(0, 1), wanted, ignore_index=IGNORED))
        asked = wanted != IGNORED
        shares.append((each.flatten(0, 1).argmax(dim=-1) == wanted)[asked].float().mean())
    return torch.stack(losses).sum(), torch.stack(shares).detach()
