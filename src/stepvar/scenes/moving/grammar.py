"""Prompts of moving scenes, such as "a red star moves to the left and a blue ring grows on grass"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepvar.scenes.grammar import pick, write_group
from stepvar.scenes.moving.scenes import CANVAS, scene_for
from stepvar.scenes.moving.spec import DIRECTIONS, MOTIONS, SCALINGS, MovingObject, MovingScene, VideoSpec
from stepvar.scenes.parsing import Reader, known_words
from stepvar.scenes.spec import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    TEXTURES,
    Combination,
    Group,
    Split,
)
from stepvar.scenes.vocabulary import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    SHAPE_WORDS,
    TEXTURE_WORDS,
)

MOTION_PHRASES: dict[tuple[str, ...], str] = {
    ("moves", "to", "the", "left"): "left",
    ("moves", "left"): "left",
    ("moves", "to", "the", "right"): "right",
    ("moves", "right"): "right",
    ("moves", "up"): "up",
    ("rises",): "up",
    ("moves", "down"): "down",
    ("falls",): "down",
    ("grows",): "grow",
    ("gets", "larger"): "grow",
    ("shrinks",): "shrink",
    ("gets", "smaller"): "shrink",
    ("stands", "still"): "still",
    ("does", "not", "move"): "still",
}
VIDEO_WORDS: tuple[str, ...] = ("video", "clip")

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"and", "of", "on", "a", "an", "the", "one", "1", *VIDEO_WORDS}
        | {word for phrase in MOTION_PHRASES for word in phrase}
        | set().union(SHAPE_WORDS, COLOUR_WORDS, TEXTURE_WORDS, BACKGROUND_WORDS)
    )
)
"""Every word that a prompt of the video model can consist of, lower case, sorted."""

CATEGORIES: tuple[str, ...] = ("direction", "scaling", "attributes", "two objects")

_EXAMPLE = "a red star moves to the left on sand"
_LEAD_IN_SHARE = 0.25
_COLOUR_SHARE, _TEXTURE_SHARE, _BACKGROUND_SHARE = 0.7, 0.4, 0.5
_HELD_OUT_EVERY = 4
_DISTINCT_ATTEMPTS = 100
_HELD_OUT_COMBINATIONS: tuple[Combination, ...] = tuple(sorted(HELD_OUT))


@dataclass(frozen=True)
class VideoPrompt:
    """A text, its category and its specification."""

    text: str
    category: str
    spec: VideoSpec

    @property
    def held_out(self) -> bool:
        """Whether the prompt names a combination that training never shows."""
        return self.spec.held_out


def parse(text: str) -> VideoSpec:
    """Reads a prompt; upper case, commas and full stops do not matter.

    Raises:
        UnknownWordError: A word is not in `VOCABULARY`.
        WordOrderError: The words are known, but their order is not understood.
    """
    reader = Reader(known_words(text, VOCABULARY, _EXAMPLE))
    reader.skip_lead_in(VIDEO_WORDS)
    objects = [_read_object(reader)]
    if reader.accept("and"):
        objects.append(_read_object(reader))
    background = reader.background()
    reader.end("'and', a background such as 'on sand'")
    return VideoSpec(tuple(objects), background)


def _read_object(reader: Reader) -> MovingObject:
    group = reader.group()
    motion = reader.phrase(MOTION_PHRASES)
    if motion is None:
        raise reader.fail("a motion such as 'moves left' or 'grows'")
    return MovingObject(group, motion)


def write_prompt(rng: np.random.Generator, spec: VideoSpec) -> str:
    """Puts a spec into words, choosing among synonyms at random; `parse` gives the spec back."""
    parts = [f"a {pick(rng, VIDEO_WORDS)} of"] if rng.random() < _LEAD_IN_SHARE else []
    for index, item in enumerate(spec.objects):
        phrases = [" ".join(phrase) for phrase, motion in MOTION_PHRASES.items() if motion == item.motion]
        parts += ["and"] if index else []
        parts += [write_group(rng, item.group, may_be_definite=index > 0), pick(rng, phrases)]
    if spec.background is not None:
        parts.append(pick(rng, ("on", "on the")) + " " + spec.background)
    return " ".join(parts)


def sample(
    rng: np.random.Generator, category: str | None = None, *, split: Split = "train", canvas: int = CANVAS
) -> tuple[VideoPrompt, MovingScene]:
    """Draws a prompt and a moving scene that shows exactly what it asks for.

    Args:
        rng: The only source of randomness.
        category: One of `CATEGORIES`; by default each is as likely as the others.
        split: "train" never names or shows a held-out combination, "heldout" always names one, "any" does
            not care.
        canvas: Side of the frames in pixels.

    Raises:
        ValueError: There is no such category.
    """
    prompt = sample_prompt(rng, category, split=split)
    return prompt, scene_for(rng, prompt.spec, split=split, canvas=canvas)


def sample_prompt(
    rng: np.random.Generator, category: str | None = None, *, split: Split = "train"
) -> VideoPrompt:
    """Draws a prompt without a scene; the arguments are those of `sample`.

    Raises:
        ValueError: There is no such category.
    """
    if category is None:
        category = pick(rng, CATEGORIES)
    if category not in CATEGORIES:
        raise ValueError(f"There is no category '{category}'; there are {', '.join(CATEGORIES)}.")
    spec = _draw_spec(rng, category, split)
    while split == "train" and spec.held_out:
        spec = _draw_spec(rng, category, split)
    return VideoPrompt(write_prompt(rng, spec), category, spec)


def evaluation_prompts(count: int, seed: int = 0) -> list[VideoPrompt]:
    """Returns prompts balanced over the categories; the same arguments give the same prompts.

    In each category, one prompt in four names a held-out combination. All texts differ.
    """
    rng = np.random.default_rng(seed)
    prompts: list[VideoPrompt] = []
    seen: set[str] = set()
    for index in range(count):
        turn, place = divmod(index, len(CATEGORIES))
        split: Split = "heldout" if (turn + place) % _HELD_OUT_EVERY == 0 else "train"
        for _ in range(_DISTINCT_ATTEMPTS):
            prompt = sample_prompt(rng, CATEGORIES[place], split=split)
            if prompt.text not in seen:
                break
        seen.add(prompt.text)
        prompts.append(prompt)
    return prompts


def _draw_spec(rng: np.random.Generator, category: str, split: Split) -> VideoSpec:
    """Draws a specification; with split "heldout", one object is of a held-out combination."""
    count = 2 if category == "two objects" else 1
    motions = {"direction": tuple(DIRECTIONS), "scaling": tuple(SCALINGS)}.get(category, MOTIONS)
    every = category == "attributes"
    forced = int(rng.integers(count)) if split == "heldout" else -1
    while True:
        objects = []
        for index in range(count):
            shape, colour, texture = (pick(rng, values) for values in (SHAPES, COLOURS, TEXTURES))
            group = Group(
                1,
                shape,
                colour if every or rng.random() < _COLOUR_SHARE else None,
                texture if every or rng.random() < _TEXTURE_SHARE else None,
            )
            if index == forced:
                group = Group(1, *_HELD_OUT_COMBINATIONS[rng.integers(len(_HELD_OUT_COMBINATIONS))])
            objects.append(MovingObject(group, pick(rng, motions)))
        background = pick(rng, BACKGROUNDS) if every or rng.random() < _BACKGROUND_SHARE else None
        if len(objects) == 1 or _are_distinct(objects[0].group, objects[1].group):
            return VideoSpec(tuple(objects), background)


def _are_distinct(first: Group, second: Group) -> bool:
    """Whether two objects are distinguishable in every frame."""
    colours_differ = None not in (first.colour, second.colour) and first.colour != second.colour
    return first.shape != second.shape or colours_differ
