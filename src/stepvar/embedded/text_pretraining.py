"""Pretraining of the text encoder: every word learns about its group of objects before any picture is seen.

Infinity's text encoder comes to its training knowing language. Ours would have to find out from pictures
alone which colour belongs to which shape and which shape is named first, and takes a hundred thousand of them
for it; prompts without pictures cost next to nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from stepvar.embedded.precision import mixed_precision
from stepvar.embedded.scenes import CATEGORIES, Group, SceneSpec, sample_prompt, split_words
from stepvar.embedded.scenes.spec import COLOURS, MAXIMUM_OBJECTS, RELATIONS, SHAPES, SIZES, TEXTURES
from stepvar.embedded.scenes.vocabulary import PLURAL_WORDS, SHAPE_WORDS

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


def _about(spec: SceneSpec, index: int) -> list[int]:
    group = spec.groups[index]
    place = spec.relation if index == 0 or spec.relation is None else _OPPOSITE[spec.relation]
    others = sum(other.count for other in spec.groups) - group.count
    return [index, _number(place, RELATIONS), *_looks(group), group.count - 1, others]


def _looks(group: Group) -> list[int]:
    # Every prompt names its shapes, so their numbers need no place for an open one.
    open_ones = ((group.colour, COLOURS), (group.texture, TEXTURES), (group.size, SIZES))
    return [SHAPES.index(group.shape), *(_number(value, values) for value, values in open_ones)]


def _number(value: str | None, values: Sequence[str]) -> int:
    """Place of a value; one past the last for an open one."""
    return len(values) if value is None else values.index(value)


def pretrain_text_encoder(
    encoder: T5EncoderModel, words: PreTrainedTokenizerFast, settings: TextPretraining | None = None
) -> dict[str, float]:
    """Trains an encoder in place, on prompts of the training split.

    Args:
        encoder: The text encoder.
        words: Its tokenizer.
        settings: See `TextPretraining`.

    Returns:
        Share of right answers to every question over the last steps.
    """
    settings = settings or TextPretraining()
    random = np.random.default_rng([settings.seed, 7])
    torch.manual_seed(settings.seed)
    before = copy.deepcopy(encoder).eval().requires_grad_(False)
    questions = nn.Linear(encoder.config.d_model, sum(QUESTIONS.values()))
    parameters = [*encoder.parameters(), *questions.parameters()]
    optimiser = torch.optim.AdamW(_groups(encoder, questions, settings), betas=(0.9, 0.98))
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, settings.steps)
    right = torch.zeros(len(QUESTIONS))
    for step in range(settings.steps):
        batch, labels = _draw(words, random, settings.prompts)
        with mixed_precision(encoder.device):
            states = encoder(**batch).last_hidden_state
            logits = questions(states)
        loss, share = _judge(logits.float(), labels)
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
    return dict(zip(QUESTIONS, right.tolist(), strict=True))


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
    words: PreTrainedTokenizerFast, random: np.random.Generator, count: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Prompts as the encoder takes them, and their answers [B, T, questions]."""
    prompts = [sample_prompt(random, CATEGORIES[index % len(CATEGORIES)]) for index in range(count)]
    batch = words([prompt.text for prompt in prompts], padding=True, return_tensors="pt")
    labels = torch.full((*batch.input_ids.shape, len(QUESTIONS)), IGNORED)
    for row, prompt in enumerate(prompts):
        known = torch.tensor(answers(prompt.text, prompt.spec))
        labels[row, : len(known)] = known
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, labels


def _judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy, and share of right answers to every question, over the words of groups."""
    losses, shares = [], []
    for question, each in enumerate(logits.split(list(QUESTIONS.values()), dim=-1)):
        wanted = labels[..., question].flatten()
        losses.append(functional.cross_entropy(each.flatten(0, 1), wanted, ignore_index=IGNORED))
        asked = wanted != IGNORED
        shares.append((each.flatten(0, 1).argmax(dim=-1) == wanted)[asked].float().mean())
    return torch.stack(losses).sum(), torch.stack(shares).detach()
