"""What the text encoder of the video model learns before any video is seen."""

from __future__ import annotations

import numpy as np

from stepvar.scenes import split_words
from stepvar.scenes.moving.grammar import CATEGORIES, sample_prompt
from stepvar.scenes.moving.spec import MOTIONS, VideoSpec
from stepvar.scenes.spec import BACKGROUNDS, COLOURS, SHAPES, TEXTURES
from stepvar.training.text_pretraining import IGNORED, Quiz, number

QUESTIONS: dict[str, int] = {
    "index": 2,
    "motion": len(MOTIONS),
    "shape": len(SHAPES),
    "colour": len(COLOURS) + 1,
    "texture": len(TEXTURES) + 1,
    "other motion": len(MOTIONS) + 1,
    "background": len(BACKGROUNDS) + 1,
}
"""What every word of an object is asked about it, and how many answers there are.

Where an object is depends on the other one's motion too.
"""


def answers(prompt: str, spec: VideoSpec) -> list[list[int]]:
    """What every word of a prompt is to know, in the order of `QUESTIONS`.

    Words up to "and" belong to the first object, those after it to the second one; the background's to none.

    Args:
        prompt: As written for `spec`.
        spec: What it asks for.
    """
    labels, index, of_object = [], 0, True
    for word in split_words(prompt):
        index += word == "and"
        of_object = of_object and word != "on"
        labels.append(_about(spec, index) if of_object else [IGNORED] * len(QUESTIONS))
    return labels


def _about(spec: VideoSpec, index: int) -> list[int]:
    mover = spec.movers[index]
    others = [other.motion for other in spec.movers if other is not mover]
    return [
        index,
        MOTIONS.index(mover.motion),
        SHAPES.index(mover.group.shape),
        number(mover.group.colour, COLOURS),
        number(mover.group.texture, TEXTURES),
        number(others[0] if others else None, MOTIONS),
        number(spec.background, BACKGROUNDS),
    ]


def _ask_about_video(random: np.random.Generator, place: int) -> tuple[str, list[list[int]]]:
    # Half of the prompts name two objects: there is more to learn from them.
    category = CATEGORIES[-1] if place % 2 else CATEGORIES[place // 2 % (len(CATEGORIES) - 1)]
    prompt = sample_prompt(random, category)
    return prompt.text, answers(prompt.text, prompt.spec)


VIDEOS = Quiz(QUESTIONS, _ask_about_video)
