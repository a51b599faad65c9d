"""Description of a scene: the lists of attributes, and the records built from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import Literal

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES: tuple[str, ...] = ("plain", "striped", "checked", "dotted")
SIZES: tuple[str, ...] = ("small", "medium", "large")
BACKGROUNDS: tuple[str, ...] = ("sand", "grass", "water", "stone")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")

CANVAS: int = 192
"""Side in pixels of the canvas on which scenes are laid out by default."""

MAXIMUM_OBJECTS: int = 4

RADIUS_FRACTIONS: dict[str, float] = {"small": 0.105, "medium": 0.15, "large": 0.21}
"""Nominal radius (half the side of the bounding square) of each size, as a fraction of the canvas side."""

Split = Literal["train", "heldout", "any"]
Combination = tuple[str, str, str]

_HELD_OUT_SHARE = 0.1


def _require(kind: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        known = ", ".join(name for name in allowed if name is not None)
        raise ValueError(f"There is no {kind} '{value}'; there are {known}.")


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    `x`, `y` (centre) and `radius` (half the side of the bounding square, outline included) are pixels on a
    canvas whose side is the scene's `canvas`.
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def combination(self) -> Combination:
        """Shape, colour and texture, on which the held-out split is defined."""
        return (self.shape, self.colour, self.texture)


@dataclass(frozen=True)
class Scene:
    """A background and one to four objects that neither overlap nor leave the canvas."""

    background: str
    objects: tuple[SceneObject, ...]
    canvas: int = CANVAS


@dataclass(frozen=True)
class Group:
    """`count` identical objects asked for by a prompt; None leaves an attribute open.

    Raises:
        ValueError: an attribute is not one of the known ones, or the count is not positive.
    """

    count: int
    shape: str
    colour: str | None = None
    texture: str | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"A group holds at least one object, not {self.count}.")
        _require("shape", self.shape, SHAPES)
        _require("colour", self.colour, (None, *COLOURS))
        _require("texture", self.texture, (None, *TEXTURES))
        _require("size", self.size, (None, *SIZES))

    @property
    def combination(self) -> Combination | None:
        """Shape, colour and texture when the prompt fixes all three, else None."""
        if self.colour is None or self.texture is None:
            return None
        return (self.shape, self.colour, self.texture)


@dataclass(frozen=True)
class SceneSpec:
    """Content that a picture must show: exactly these groups, and nothing else.

    With a `relation`, the first group stands left of / right of / above / below the second one.

    Raises:
        ValueError: there is no group, a relation without two groups, or an unknown relation or background.
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        _require("relation", self.relation, (None, *RELATIONS))
        _require("background", self.background, (None, *BACKGROUNDS))
        if not self.groups:
            raise ValueError("A spec needs at least one group of objects; it has none.")
        if self.relation is not None and len(self.groups) != 2:
            raise ValueError(f"The relation '{self.relation}' needs two groups, not {len(self.groups)}.")


def _choose_held_out() -> frozenset[Combination]:
    """Take the tenth of all combinations with the smallest digest: always the same, yet without a pattern."""
    combinations = list(product(SHAPES, COLOURS, TEXTURES))
    ranked = sorted(combinations, key=lambda parts: hashlib.sha256("/".join(parts).encode()).digest())
    return frozenset(ranked[: round(_HELD_OUT_SHARE * len(combinations))])


HELD_OUT: frozenset[Combination] = _choose_held_out()
"""Combinations of shape, colour and texture that never appear in training scenes or prompts."""


def is_held_out(description: SceneSpec | Scene) -> bool:
    """Whether a spec names, or a scene shows, at least one held-out combination."""
    parts = description.objects if isinstance(description, Scene) else description.groups
    return any(part.combination in HELD_OUT for part in parts)
