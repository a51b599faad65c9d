"""Targets of the scene network: of its maps, from scenes, and of its embeddings, from specs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes import BACKGROUNDS, Group, Scene, SceneSpec
from stepvar.scenes.network.image_backbone import OBJECT_ATTRIBUTES, STRIDE
from stepvar.scenes.spec import MAXIMUM_OBJECTS

IGNORED = -1

_CENTRE_WIDTH = 12.0
# An object is present on the cells this near its centre, absent beyond the second distance (pixels).
_NEAR, _FAR = 14.0, 26.0
# Its attributes are learned on the cells within this part of its radius, and at least on the nearest ones.
_INNER, _LEAST_INNER = 0.5, 12.0


@dataclass(frozen=True)
class MapTargets:
    """Targets of one scene of h x w cells.

    Attributes:
        centre: float32 [h, w] in 0..1, 1 at the centre of an object.
        present: int64 [h, w], 0, 1 or `IGNORED`.
        attributes: int64 [h, w, 4], classes of shape, colour, texture and size, or `IGNORED`.
        background: Its class.
    """

    centre: NDArray[np.float32]
    present: NDArray[np.int64]
    attributes: NDArray[np.int64]
    background: int


def map_targets(scene: Scene) -> MapTargets:
    """Targets of every cell of a scene's map."""
    cells = scene.canvas // STRIDE
    middles = (np.arange(cells) + 0.5) * STRIDE
    centre = np.zeros((cells, cells), dtype=np.float32)
    present = np.zeros((cells, cells), dtype=np.int64)
    attributes = np.full((cells, cells, len(OBJECT_ATTRIBUTES)), IGNORED, dtype=np.int64)
    for item in scene.objects:
        across, down = middles[None, :] - item.x, middles[:, None] - item.y
        centre = np.maximum(centre, np.exp(-(across**2 + down**2) / (2 * _CENTRE_WIDTH**2)))
        distance = np.maximum(np.abs(across), np.abs(down))
        present[(distance > _NEAR) & (distance <= _FAR)] = IGNORED
        present[distance <= _NEAR] = 1
        classes = [values.index(getattr(item, name)) for name, values in OBJECT_ATTRIBUTES.items()]
        attributes[distance <= max(_INNER * item.radius, _LEAST_INNER)] = classes
    return MapTargets(centre.astype(np.float32), present, attributes, BACKGROUNDS.index(scene.background))


_NAMES = ("shape", "colour", "texture")
_PAIRS = (("shape", "colour"), ("colour", "texture"), ("shape", "texture"))

SPEC_TARGETS = (
    sum(len(OBJECT_ATTRIBUTES[name]) for name in _NAMES)
    + sum(len(OBJECT_ATTRIBUTES[first]) * len(OBJECT_ATTRIBUTES[second]) for first, second in _PAIRS)
    + MAXIMUM_OBJECTS
    + len(BACKGROUNDS)
)


def spec_targets(spec: SceneSpec) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Whether a picture shows each attribute and each pair of attributes, as far as a spec determines it.

    Returns:
        The targets, 0 or 1, float32 [SPEC_TARGETS], and which of them the spec decides.
    """
    certain, possible = (
        np.logical_or.reduce(masks) for masks in zip(*map(_presences, spec.groups), strict=True)
    )
    total = sum(group.count for group in spec.groups)
    counts = np.arange(1, MAXIMUM_OBJECTS + 1) == total
    backgrounds = np.array([name == spec.background for name in BACKGROUNDS])
    values = np.concatenate((certain, counts, backgrounds))
    known = np.concatenate(
        (certain | ~possible, np.ones_like(counts), np.full_like(backgrounds, backgrounds.any()))
    )
    return values.astype(np.float32), known


@cache
def _presences(group: Group) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Attributes and pairs that a group certainly has, and those that it may have."""
    certain = {
        name: np.array([value == getattr(group, name) for value in OBJECT_ATTRIBUTES[name]])
        for name in _NAMES
    }
    possible = {name: mask if mask.any() else ~mask for name, mask in certain.items()}
    return _with_pairs(certain), _with_pairs(possible)


def _with_pairs(masks: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    pairs = (np.outer(masks[first], masks[second]).ravel() for first, second in _PAIRS)
    return np.concatenate((*masks.values(), *pairs))


def full_spec(scene: Scene, spec: SceneSpec) -> SceneSpec:
    """A spec with everything named that its scene shows.

    Args:
        scene: Drawn by `stepvar.scenes.scene_for`, so that its objects follow the groups' order.
        spec: What it was drawn for.
    """
    groups, first = [], 0
    for group in spec.groups:
        item = scene.objects[first]
        looks = {name: getattr(item, name) for name in OBJECT_ATTRIBUTES}
        groups.append(replace(group, **looks))
        first += group.count
    return SceneSpec(tuple(groups), spec.relation, scene.background)
