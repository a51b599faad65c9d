"""Word labels on which the text encoder of the picture model is pretrained."""

from __future__ import annotations

import numpy as np

from stepvar.scenes import CATEGORIES, Group, SceneSpec, sample_prompt, split_words
from stepvar.scenes.spec import COLOURS, MAXIMUM_OBJECTS, RELATIONS, SHAPES, SIZES, TEXTURES
from stepvar.scenes.vocabulary import PLURAL_WORDS, SHAPE_WORDS
from stepvar.training.common.text_pretraining import IGNORED, LabelledPrompts, class_of

CLASSES: dict[str, int] = {
    "index": 2,
    "place": len(RELATIONS) + 1,
    "shape": len(SHAPES),
    "colour": len(COLOURS) + 1,
    "texture": len(TEXTURES) + 1,
    "size": len(SIZES) + 1,
    "count": MAXIMUM_OBJECTS,
    "others": MAXIMUM_OBJECTS,
}
"""Labels of every word of a group of objects, and how many classes each has."""

_NOUNS = SHAPE_WORDS.keys() | PLURAL_WORDS.keys()
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def label_words(prompt: str, spec: SceneSpec) -> list[list[int]]:
    """Labels of every word of a prompt, in the order of `CLASSES`.

    Words up to the first noun belong to the first group, those up to the second noun to the second one.

    Args:
        prompt: As written for `spec`.
        spec: What it asks for.
    """
    labels, group = [], 0
    for word in split_words(prompt):
        labels.append(_group_labels(spec, group) if group < len(spec.groups) else [IGNORED] * len(CLASSES))
        group += word in _NOUNS
    return labels


def _group_labels(spec: SceneSpec, index: int) -> list[int]:
    group = spec.groups[index]
    place = spec.relation if index == 0 or spec.relation is None else _OPPOSITE[spec.relation]
    others = sum(other.count for other in spec.groups) - group.count
    return [index, class_of(place, RELATIONS), *_appearance(group), group.count - 1, others]


def _appearance(group: Group) -> list[int]:
    # Every prompt names its shapes, so these have no class for an open one.
    optional = ((group.colour, COLOURS), (group.texture, TEXTURES), (group.size, SIZES))
    return [SHAPES.index(group.shape), *(class_of(value, values) for value, values in optional)]


def _draw(random: np.random.Generator, place: int) -> tuple[str, list[list[int]]]:
    prompt = sample_prompt(random, CATEGORIES[place % len(CATEGORIES)])
    return prompt.text, label_words(prompt.text, prompt.spec)


PICTURE_PROMPTS = LabelledPrompts(CLASSES, _draw)
