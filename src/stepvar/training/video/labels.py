"""Word labels on which the text encoder of the video model is pretrained."""

from __future__ import annotations

import numpy as np

from stepvar.scenes import split_words
from stepvar.scenes.moving.grammar import CATEGORIES, sample_prompt
from stepvar.scenes.moving.spec import MOTIONS, VideoSpec
from stepvar.scenes.spec import BACKGROUNDS, COLOURS, SHAPES, TEXTURES
from stepvar.training.common.text_pretraining import IGNORED, LabelledPrompts, class_of

CLASSES: dict[str, int] = {
    "index": 2,
    "motion": len(MOTIONS),
    "shape": len(SHAPES),
    "colour": len(COLOURS) + 1,
    "texture": len(TEXTURES) + 1,
    "other motion": len(MOTIONS) + 1,
    "background": len(BACKGROUNDS) + 1,
}
"""Labels of every word of an object, and how many classes each has.

Where an object is depends on the other one's motion too.
"""


def label_words(prompt: str, spec: VideoSpec) -> list[list[int]]:
    """Labels of every word of a prompt, in the order of `CLASSES`.

    Words up to "and" belong to the first object, those after it to the second one; the background's to none.

    Args:
        prompt: As written for `spec`.
        spec: What it asks for.
    """
    labels, index, of_object = [], 0, True
    for word in split_words(prompt):
        index += word == "and"
        of_object = of_object and word != "on"
        labels.append(_object_labels(spec, index) if of_object else [IGNORED] * len(CLASSES))
    return labels


def _object_labels(spec: VideoSpec, index: int) -> list[int]:
    item = spec.objects[index]
    others = [other.motion for other in spec.objects if other is not item]
    return [
        index,
        MOTIONS.index(item.motion),
        SHAPES.index(item.group.shape),
        class_of(item.group.colour, COLOURS),
        class_of(item.group.texture, TEXTURES),
        class_of(others[0] if others else None, MOTIONS),
        class_of(spec.background, BACKGROUNDS),
    ]


def _draw(random: np.random.Generator, place: int) -> tuple[str, list[list[int]]]:
    # Half of the prompts name two objects: there is more to learn from them.
    category = CATEGORIES[-1] if place % 2 else CATEGORIES[place // 2 % (len(CATEGORIES) - 1)]
    prompt = sample_prompt(random, category)
    return prompt.text, label_words(prompt.text, prompt.spec)


VIDEO_PROMPTS = LabelledPrompts(CLASSES, _draw)
