"""Random prompts in the six categories of GenEval, and scenes that satisfy them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepvar.scenes.layout import arrange
from stepvar.scenes.parsing import PromptError, UnknownWordError, WordOrderError, parse
from stepvar.scenes.sampling import draw_radius
from stepvar.scenes.spec import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    HELD_OUT,
    MAXIMUM_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Combination,
    Group,
    Scene,
    SceneObject,
    SceneSpec,
    Split,
    is_held_out,
)
from stepvar.scenes.vocabulary import (
    COUNT_WORDS,
    PLURAL_WORDS,
    RELATION_PHRASES,
    SIZE_WORDS,
    TEXTURE_WORDS,
    VOCABULARY,
    spellings,
    split_words,
)

__all__ = [
    "CATEGORIES",
    "VOCABULARY",
    "Prompt",
    "PromptError",
    "UnknownWordError",
    "WordOrderError",
    "evaluation_prompts",
    "parse",
    "sample",
    "sample_prompt",
    "scene_for",
    "split_words",
    "write_prompt",
]

CATEGORIES: tuple[str, ...] = (
    "single object",
    "two objects",
    "counting",
    "colours",
    "position",
    "colour attribution",
)

# How often a group names its colour; "colours" and "colour attribution" are about nothing else.
_COLOUR_SHARES = dict(zip(CATEGORIES, (0.5, 0.6, 0.7, 1.0, 0.75, 1.0), strict=True))
_TEXTURE_SHARE = 0.45
_SIZE_SHARE = 0.2
_BACKGROUND_SHARE = 0.5
_LEAD_INS = ("a photo of", "a picture of", "an image of")
_LEAD_IN_SHARE = 0.4
_DISTINCT_ATTEMPTS = 100
# One evaluation prompt in so many, in each category, names a held-out combination.
_HELD_OUT_EVERY = 4

_HELD_OUT_COMBINATIONS: tuple[Combination, ...] = tuple(sorted(HELD_OUT))


@dataclass(frozen=True)
class Prompt:
    """A text, its category and its specification."""

    text: str
    category: str
    spec: SceneSpec

    @property
    def held_out(self) -> bool:
        """Whether the prompt names a combination that training never shows."""
        return is_held_out(self.spec)


def sample(
    rng: np.random.Generator,
    category: str | None = None,
    *,
    split: Split = "train",
    canvas: int = CANVAS,
) -> tuple[Prompt, Scene]:
    """Draw a prompt and a scene that shows exactly what it asks for.

    Args:
        rng: the only source of randomness.
        category: one of `CATEGORIES`; by default each is as likely as the others.
        split: "train" never names or shows a held-out combination, "heldout" always names one, "any" does
            not care.
        canvas: side in pixels of the canvas the scene is laid out on.

    Raises:
        ValueError: there is no such category.
    """
    prompt = sample_prompt(rng, category, split=split)
    return prompt, scene_for(rng, prompt.spec, split=split, canvas=canvas)


def sample_prompt(rng: np.random.Generator, category: str | None = None, *, split: Split = "train") -> Prompt:
    """Draw a prompt without a scene; the arguments are those of `sample`.

    Raises:
        ValueError: there is no such category.
    """
    if category is None:
        category = pick(rng, CATEGORIES)
    if category not in CATEGORIES:
        raise ValueError(f"There is no category '{category}'; there are {', '.join(CATEGORIES)}.")
    spec = _draw_spec(rng, category, split)
    while split == "train" and is_held_out(spec):
        spec = _draw_spec(rng, category, split)
    return Prompt(write_prompt(rng, spec), category, spec)


def evaluation_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Return `count` prompts, balanced over the categories; the same arguments give the same prompts.

    In each category, one prompt in four names a held-out combination (`Prompt.held_out`). All texts differ,
    unless `count` exceeds the number of short ones.
    """
    rng = np.random.default_rng(seed)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for index in range(count):
        category = CATEGORIES[index % len(CATEGORIES)]
        turn = index // len(CATEGORIES) + index % len(CATEGORIES)
        split: Split = "heldout" if turn % _HELD_OUT_EVERY == 0 else "train"
        for _ in range(_DISTINCT_ATTEMPTS):
            prompt = sample_prompt(rng, category, split=split)
            if prompt.text not in seen:
                break
        seen.add(prompt.text)
        prompts.append(prompt)
    return prompts


def scene_for(
    rng: np.random.Generator, spec: SceneSpec, *, split: Split = "train", canvas: int = CANVAS
) -> Scene:
    """Draw a scene that shows exactly what a spec asks for.

    The objects of one group look alike, and stand where `layout.arrange` says; what the spec leaves open is
    random but for the size of several objects, which is medium where it fits. With split "train", what is
    left open is chosen so that no held-out combination is shown, unless the spec names it.

    Raises:
        LayoutError: the objects do not fit the canvas as the prompt arranges them.
    """
    looks = [complete(rng, group, avoid_held_out=split == "train") for group in spec.groups]
    background = spec.background or pick(rng, BACKGROUNDS)
    sizes = [group.size or _open_size(rng, spec, group) for group in spec.groups]
    radii = [
        [draw_radius(rng, size, canvas) for _ in range(group.count)]
        for group, size in zip(spec.groups, sizes, strict=True)
    ]
    first, *others = radii
    points = arrange(rng, first, others[0] if others else [], spec.relation, canvas)
    owners = [index for index, group in enumerate(spec.groups) for _ in range(group.count)]
    flat = [radius for group_radii in radii for radius in group_radii]
    objects = tuple(
        SceneObject(*looks[owner], sizes[owner], x, y, radius)
        for owner, (x, y), radius in zip(owners, points, flat, strict=True)
    )
    return Scene(background, objects, canvas)


def _open_size(rng: np.random.Generator, spec: SceneSpec, group: Group) -> str:
    """The size of a group that names none: any for a single object, else a recognisable one that fits."""
    if sum(each.count for each in spec.groups) == 1:
        return pick(rng, SIZES)
    # Three medium objects do not fit beside, above or below another one.
    return "small" if spec.relation is not None and group.count > 2 else "medium"


def write_prompt(rng: np.random.Generator, spec: SceneSpec) -> str:
    """Put a spec into words, choosing among synonyms at random; `parse` gives the spec back."""
    parts = []
    if rng.random() < _LEAD_IN_SHARE:
        parts.append(pick(rng, _LEAD_INS))
    parts.append(write_group(rng, spec.groups[0], may_be_definite=False))
    if len(spec.groups) > 1:
        phrases = [" ".join(phrase) for phrase, value in RELATION_PHRASES.items() if value == spec.relation]
        parts.append(pick(rng, phrases) if phrases else "and")
        parts.append(write_group(rng, spec.groups[1], may_be_definite=True))
    if spec.background is not None:
        parts.append(pick(rng, ("on", "on the")) + " " + spec.background)
    return " ".join(parts)


def pick(rng: np.random.Generator, values: tuple[str, ...] | list[str]) -> str:
    return values[rng.integers(len(values))]


def _maybe(rng: np.random.Generator, share: float, values: tuple[str, ...]) -> str | None:
    """Draw one of the values with probability `share`, else None."""
    return pick(rng, values) if rng.random() < share else None


def _draw_spec(rng: np.random.Generator, category: str, split: Split) -> SceneSpec:
    """Draw a specification; with split "heldout", one group names a held-out combination."""
    counts = _draw_counts(rng, category)
    relation = pick(rng, RELATIONS) if category == "position" else None
    forced = int(rng.integers(len(counts))) if split == "heldout" else -1
    while True:
        groups = []
        for index, count in enumerate(counts):
            shape = pick(rng, SHAPES)
            colour = _maybe(rng, _COLOUR_SHARES[category], COLOURS)
            texture = _maybe(rng, _TEXTURE_SHARE, TEXTURES)
            if index == forced:
                shape, colour, texture = _HELD_OUT_COMBINATIONS[rng.integers(len(_HELD_OUT_COMBINATIONS))]
            # Three large objects do not fit beside, above or below a fourth one.
            sizes = SIZES[:1] if relation is not None and count == 3 else (SIZES[0], SIZES[-1])
            groups.append(Group(count, shape, colour, texture, _maybe(rng, _SIZE_SHARE, sizes)))
        if len(groups) == 1 or _are_distinct(groups[0], groups[1], category):
            return SceneSpec(tuple(groups), relation, _maybe(rng, _BACKGROUND_SHARE, BACKGROUNDS))


def _draw_counts(rng: np.random.Generator, category: str) -> list[int]:
    """Draw the number of objects in each group; pairs of groups now and then hold several objects."""
    if category in ("single object", "colours"):
        return [1]
    if category == "counting":
        return [int(rng.integers(2, MAXIMUM_OBJECTS + 1))]
    if rng.random() < 0.7:
        return [1, 1]
    first = int(rng.integers(1, MAXIMUM_OBJECTS))
    second = int(rng.integers(1 if first > 1 else 2, MAXIMUM_OBJECTS - first + 1))
    return [first, second]


def _are_distinct(first: Group, second: Group, category: str) -> bool:
    """Whether two groups are distinguishable."""
    colours_differ = None not in (first.colour, second.colour) and first.colour != second.colour
    if category == "colour attribution":
        return colours_differ
    return first.shape != second.shape or colours_differ


def complete(rng: np.random.Generator, group: Group, *, avoid_held_out: bool) -> Combination:
    """Draw the colour and the texture that a group leaves open."""
    choices = [
        (group.shape, colour, texture)
        for colour in ((group.colour,) if group.colour else COLOURS)
        for texture in ((group.texture,) if group.texture else TEXTURES)
    ]
    if avoid_held_out and group.combination is None:
        choices = [parts for parts in choices if parts not in HELD_OUT]
    return choices[rng.integers(len(choices))]


def write_group(rng: np.random.Generator, group: Group, *, may_be_definite: bool) -> str:
    """Write a count, the adjectives and the shape."""
    size = [pick(rng, spellings(SIZE_WORDS, group.size))] if group.size else []
    looks = [group.colour] if group.colour else []
    if group.texture:
        looks.insert(int(rng.integers(len(looks) + 1)), pick(rng, spellings(TEXTURE_WORDS, group.texture)))
    if group.count > 1:
        noun = spellings(PLURAL_WORDS, group.shape)[0]
        words = [word for word, value in COUNT_WORDS.items() if value == group.count]
        return " ".join([pick(rng, [words[0], *words]), *size, *looks, noun])
    described = [*size, *looks, group.shape]
    article = "an" if described[0][0] in "aeiou" else "a"
    draw = rng.random()
    if draw < 0.1:
        article = "one" if draw < 0.07 else "1"
    elif may_be_definite and draw < 0.25:
        article = "the"
    return " ".join([article, *described])
