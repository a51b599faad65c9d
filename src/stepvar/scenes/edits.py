"""Random edits of scenes, each with a box to draw in, a prompt of the result, and a verdict from pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.checker import detect
from stepvar.scenes.grammar import complete, pick, scene_for, write_prompt
from stepvar.scenes.recognition import DetectedObject
from stepvar.scenes.spec import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    TEXTURES,
    Combination,
    Group,
    Scene,
    SceneObject,
    SceneSpec,
)

KINDS: tuple[str, ...] = ("replace", "colour", "texture", "remove", "add")

_BOX_STEP = 4
_ROOM = 4
"""Pixels between an object and the border of its box, at least."""

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


@dataclass(frozen=True)
class SceneEdit:
    """One edit.

    Attributes:
        kind: One of `KINDS`.
        source: The scene before.
        text: Prompt of the scene after.
        wanted: What the box must show after; None for nothing but background.
        box: What may change.
    """

    kind: str
    source: Scene
    text: str
    wanted: Group | None
    box: Box


def sample_edits(count: int, seed: int, canvas: int, share: float = 0.25) -> list[SceneEdit]:
    """Edits of all kinds in turn; the same arguments give the same ones.

    Each starts from a scene of two objects, or of one to which another is added. What is drawn stands where
    the grammar would place it, and no combination that training never shows occurs.

    Args:
        canvas: Side of the pictures in pixels.
        share: Of the picture that a box covers; a box is never smaller than its object.
    """
    rng = np.random.default_rng(seed)
    return [_sample(rng, KINDS[index % len(KINDS)], canvas, share) for index in range(count)]


def _sample(rng: np.random.Generator, kind: str, canvas: int, share: float) -> SceneEdit:
    looks = [complete(rng, Group(1, pick(rng, SHAPES)), avoid_held_out=True) for _ in range(2)]
    while looks[0][0] == looks[1][0] and looks[0][1] == looks[1][1]:
        looks[1] = complete(rng, Group(1, pick(rng, SHAPES)), avoid_held_out=True)
    groups = tuple(Group(1, *each) for each in looks)
    spec = SceneSpec(groups, None, pick(rng, BACKGROUNDS))
    scene = scene_for(rng, spec, canvas=canvas)
    chosen = int(rng.integers(2))
    edited, other = scene.objects[chosen], scene.objects[1 - chosen]
    box = _box(edited, other, canvas, share)
    if kind == "remove":
        text = write_prompt(rng, replace(spec, groups=(groups[1 - chosen],)))
        return SceneEdit(kind, scene, text, None, box)
    text = write_prompt(rng, spec)
    if kind == "add":
        return SceneEdit(kind, replace(scene, objects=(other,)), text, groups[chosen], box)
    shape, colour, texture = _other_look(rng, kind, edited.combination, other)
    before = replace(edited, shape=shape, colour=colour, texture=texture)
    objects = (before, other) if chosen == 0 else (other, before)
    return SceneEdit(kind, replace(scene, objects=objects), text, groups[chosen], box)


def _other_look(rng: np.random.Generator, kind: str, look: Combination, other: SceneObject) -> Combination:
    """A look that differs from one in what an edit changes, and that training shows."""
    shape, colour, texture = look
    shapes = [each for each in SHAPES if each != shape] if kind == "replace" else [shape]
    colours = [colour] if kind == "texture" else [each for each in COLOURS if each != colour]
    textures = [each for each in TEXTURES if each != texture] if kind == "texture" else [texture]
    choices = [
        (first, second, third)
        for first in shapes
        for second in colours
        for third in textures
        if (first, second, third) not in HELD_OUT and (first, second) != (other.shape, other.colour)
    ]
    return choices[rng.integers(len(choices))]


def _box(edited: SceneObject, other: SceneObject, canvas: int, share: float) -> Box:
    """A square with the object in it, as near to its middle as leaves the other object alone."""
    reach = edited.radius + _ROOM
    side = min(max(round(canvas * share**0.5), int(2 * reach + 1)), canvas)
    best, least = (0, 0), np.inf
    for left in range(0, canvas - side + 1, _BOX_STEP):
        for top in range(0, canvas - side + 1, _BOX_STEP):
            outside = max(
                left - (edited.x - reach),
                edited.x + reach - (left + side),
                top - (edited.y - reach),
                edited.y + reach - (top + side),
                0.0,
            )
            overlap = _overlap(left, left + side, other.x, other.radius) * _overlap(
                top, top + side, other.y, other.radius
            )
            offset = np.hypot(left + side / 2 - edited.x, top + side / 2 - edited.y)
            cost = 1e6 * outside + 1e3 * overlap + offset
            if cost < least:
                best, least = (left, top), cost
    return (*best, side, side)


def _overlap(start: float, stop: float, centre: float, radius: float) -> float:
    return max(0.0, min(stop, centre + radius) - max(start, centre - radius))


@dataclass(frozen=True)
class EditVerdict:
    """What an edited picture shows in its box.

    Attributes:
        count: Whether there are as many objects as wanted, one or none.
        shape, colour, texture: Whether one object has what is wanted; true where nothing is.
    """

    count: bool
    shape: bool
    colour: bool
    texture: bool

    @property
    def passed(self) -> bool:
        """Whether all is right."""
        return self.count and self.shape and self.colour and self.texture


def check_edit(image: NDArray[np.uint8], edit: SceneEdit) -> EditVerdict:
    """Judges a picture, uint8 [H, W, 3], by the objects whose middle lies in the box.

    Raises:
        ValueError: the array is not an 8-bit RGB picture.
    """
    _, objects = detect(image)
    inside = [each for each in objects if _contains(edit.box, each)]
    if edit.wanted is None:
        return EditVerdict(not inside, True, True, True)
    best = max(inside, key=lambda each: _hits(each, edit.wanted), default=None)
    found = [False] * 3 if best is None else _right(best, edit.wanted)
    return EditVerdict(len(inside) == 1, *found)


def _right(found: DetectedObject, wanted: Group) -> list[bool]:
    return [getattr(found, name) == getattr(wanted, name) for name in ("shape", "colour", "texture")]


def _hits(found: DetectedObject, wanted: Group | None) -> int:
    return 0 if wanted is None else sum(_right(found, wanted))


def _contains(box: Box, found: DetectedObject) -> bool:
    left, top, width, height = box
    x, y = found.centre
    return left <= x < left + width and top <= y < top + height
