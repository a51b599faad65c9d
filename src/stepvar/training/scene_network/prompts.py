"""Prompts that are true of a scene, and prompts that are false by a single attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    DetectedObject,
    Group,
    Scene,
    SceneSpec,
    judge,
)
from stepvar.scenes.spec import MAXIMUM_OBJECTS
from stepvar.training.scene_network.targets import full_spec

SWAPS = ("background", "count", "shape", "colour", "texture", "size", "relation", "exchange")
"""Attributes that may be wrong in a hard negative; "exchange" swaps an attribute between the two groups."""

_DRAWN_SWAPS = (*SWAPS, "size", "relation", "exchange")
"""The kinds that are learned last come twice."""

_COLOUR_SHARE, _TEXTURE_SHARE, _SIZE_SHARE = 0.75, 0.5, 0.3
_BACKGROUND_SHARE, _RELATION_SHARE = 0.5, 0.75
_WRITTEN_SIZES = ("small", "large")
_SWAP_ATTEMPTS = 12

Value = TypeVar("Value")


@dataclass(frozen=True)
class AnnotatedScene:
    """A scene with all of its attributes.

    Attributes:
        spec: All attributes of all groups, and the relation that the first group has to the second, if any.
        objects: As a perfect detector would see them.
        side: Of the canvas in pixels.
    """

    spec: SceneSpec
    objects: tuple[DetectedObject, ...]
    side: int

    @classmethod
    def from_scene(cls, scene: Scene, requested: SceneSpec) -> AnnotatedScene:
        """A scene that was drawn for a requested spec."""
        objects = tuple(
            DetectedObject(
                item.shape,
                item.colour,
                item.texture,
                item.size,
                (
                    round(item.x - item.radius),
                    round(item.y - item.radius),
                    round(item.x + item.radius),
                    round(item.y + item.radius),
                ),
                item.radius,
            )
            for item in scene.objects
        )
        spec = replace(full_spec(scene, requested), relation=None)
        known = cls(spec, objects, scene.canvas)
        if len(spec.groups) == 2:
            related = (replace(spec, relation=relation) for relation in RELATIONS)
            spec = next((candidate for candidate in related if known.satisfies(candidate)), spec)
        return cls(spec, objects, scene.canvas)

    def satisfies(self, spec: SceneSpec) -> bool:
        """Whether the scene shows exactly what a spec asks for."""
        if not np.array_equal(shape_counts(spec), shape_counts(self.spec)):
            return False
        return judge(self.objects, self.spec.background, spec, self.side).passed


def shape_counts(spec: SceneSpec) -> NDArray[np.int64]:
    """How many objects of each shape a spec asks for, [shapes]; prompts always name shapes."""
    counts = np.zeros(len(SHAPES), dtype=np.int64)
    for group in spec.groups:
        counts[SHAPES.index(group.shape)] += group.count
    return counts


def truth_table(scenes: Sequence[AnnotatedScene], specs: Sequence[SceneSpec]) -> NDArray[np.bool_]:
    """Which specs are true of which scenes, [scenes, specs]."""
    present = np.stack([shape_counts(scene.spec) for scene in scenes])
    wanted = np.stack([shape_counts(spec) for spec in specs])
    # Few pairs agree in the shapes, and only these are worth a closer look.
    table = (present[:, None] == wanted[None]).all(-1)
    for row, column in np.argwhere(table):
        table[row, column] = scenes[row].satisfies(specs[column])
    return table


def describe(random: np.random.Generator, scene: AnnotatedScene) -> SceneSpec:
    """A spec with some of the attributes of a scene, in either order of its groups."""
    spec = scene.spec
    groups, relation = spec.groups, spec.relation
    if len(groups) == 2 and random.random() < 0.5:
        groups, relation = groups[::-1], _opposite(relation)
    if random.random() >= _RELATION_SHARE:
        relation = None
    # Groups of one shape differ in their colours only.
    always_colours = len(groups) == 2 and groups[0].shape == groups[1].shape
    named = tuple(_mention(random, group, always_colours) for group in groups)
    return SceneSpec(named, relation, spec.background if random.random() < _BACKGROUND_SHARE else None)


def _mention(random: np.random.Generator, group: Group, colour: bool) -> Group:
    size = group.size if group.size in _WRITTEN_SIZES and random.random() < _SIZE_SHARE else None
    return replace(
        group,
        colour=group.colour if colour or random.random() < _COLOUR_SHARE else None,
        texture=group.texture if random.random() < _TEXTURE_SHARE else None,
        size=size,
    )


def _opposite(relation: str | None) -> str | None:
    pairs = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    return None if relation is None else pairs[relation]


def hard_negative(
    random: np.random.Generator, spec: SceneSpec, scene: AnnotatedScene, kind: str | None = None
) -> tuple[SceneSpec, str] | None:
    """The same spec with one attribute swapped, false of the scene.

    Args:
        random: The only source of randomness.
        spec: True of the scene.
        kind: One of `SWAPS`; by default any, those that are hard to learn more often.

    Returns:
        The spec and the kind of the swap; None when no such swap was found.
    """
    kinds = [kind] if kind else [_DRAWN_SWAPS[i] for i in random.permutation(len(_DRAWN_SWAPS))]
    for attempt in range(_SWAP_ATTEMPTS):
        chosen = kinds[attempt % len(kinds)]
        swapped = _SWAPPERS[chosen](random, spec) if chosen in _SWAPPERS else _swap(random, spec, chosen)
        if swapped is not None and swapped != spec and not scene.satisfies(swapped):
            return swapped, chosen
    return None


def _pick(random: np.random.Generator, values: Sequence[Value]) -> Value:
    return values[int(random.integers(len(values)))]


_ALTERNATIVES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": _WRITTEN_SIZES}


def _swap(random: np.random.Generator, spec: SceneSpec, name: str) -> SceneSpec | None:
    """Gives one group another value of an attribute that it names."""
    index = int(random.integers(len(spec.groups)))
    old = getattr(spec.groups[index], name)
    if old is None:
        return None
    new = _pick(random, [value for value in _ALTERNATIVES[name] if value != old])
    return _with_group(spec, index, _with_attribute(spec.groups[index], name, new))


def _swap_background(random: np.random.Generator, spec: SceneSpec) -> SceneSpec | None:
    if spec.background is None:
        return None
    return replace(spec, background=_pick(random, [name for name in BACKGROUNDS if name != spec.background]))


def _swap_count(random: np.random.Generator, spec: SceneSpec) -> SceneSpec | None:
    index = int(random.integers(len(spec.groups)))
    group = spec.groups[index]
    others = sum(other.count for other in spec.groups) - group.count
    counts = [n for n in range(1, MAXIMUM_OBJECTS - others + 1) if n != group.count]
    return _with_group(spec, index, replace(group, count=_pick(random, counts))) if counts else None


def _swap_relation(random: np.random.Generator, spec: SceneSpec) -> SceneSpec | None:
    if spec.relation is None:
        return None
    return replace(spec, relation=_pick(random, [name for name in RELATIONS if name != spec.relation]))


def _exchange(random: np.random.Generator, spec: SceneSpec) -> SceneSpec | None:
    """Exchanges an attribute that both groups name differently: "a red star and a blue ring" with colours."""
    if len(spec.groups) < 2:
        return None
    first, second = spec.groups
    names = [
        name
        for name in ("colour", "texture", "shape", "size", "count")
        if None not in (getattr(first, name), getattr(second, name))
        and getattr(first, name) != getattr(second, name)
    ]
    if not names:
        return None
    name = _pick(random, names)
    groups = (
        _with_attribute(first, name, getattr(second, name)),
        _with_attribute(second, name, getattr(first, name)),
    )
    return replace(spec, groups=groups)


def _with_attribute(group: Group, name: str, value: str | int) -> Group:
    changes: dict[str, Any] = {name: value}
    return replace(group, **changes)


def _with_group(spec: SceneSpec, index: int, group: Group) -> SceneSpec:
    groups = list(spec.groups)
    groups[index] = group
    return replace(spec, groups=tuple(groups))


_SWAPPERS = {
    "background": _swap_background,
    "count": _swap_count,
    "relation": _swap_relation,
    "exchange": _exchange,
}
