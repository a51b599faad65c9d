"""Checker of pictures: whether one shows what a prompt asks for, from pixels only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.recognition import DetectedObject, recognise
from stepvar.scenes.segmentation import segment
from stepvar.scenes.spec import Group, SceneSpec

__all__ = ["CheckResult", "DetectedObject", "check", "detect", "judge"]

_Assignment = tuple[tuple[DetectedObject, ...], ...]

# Objects beyond this number make no difference any more: the count is wrong already.
_LARGEST_CROWD = 6
# Centres of related groups must be at least so far apart along the relation, as a fraction of the side.
_LEAST_OFFSET = 0.08


@dataclass(frozen=True)
class CheckResult:
    """Verdict on one picture, aspect by aspect.

    An aspect is true when every specified object has it, and also when the prompt leaves it open. With a
    wrong number of objects, the best matching ones are judged, and a missing object fails all of its aspects.
    """

    count: bool
    shapes: bool
    colours: bool
    textures: bool
    sizes: bool
    position: bool
    background: bool
    objects: tuple[DetectedObject, ...]
    detected_background: str | None

    @property
    def passed(self) -> bool:
        """Whether all aspects are right."""
        return all(
            (self.count, self.shapes, self.colours, self.textures, self.sizes, self.position, self.background)
        )


def detect(image: NDArray[np.uint8]) -> tuple[str | None, tuple[DetectedObject, ...]]:
    """Return the background and the objects of a picture, uint8 [height, width, 3].

    Raises:
        ValueError: the array is not an 8-bit RGB picture of at least 64 by 64 pixels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 64:
        raise ValueError(
            "Expected an 8-bit RGB picture of at least 64 x 64 pixels, "
            f"but got {image.dtype} of shape {list(image.shape)}."
        )
    picture = image.astype(np.float32)
    parts = segment(picture)
    objects = tuple(recognise(picture, parts.distance, blob) for blob in parts.blobs)
    return parts.background, objects


def check(image: NDArray[np.uint8], spec: SceneSpec) -> CheckResult:
    """Judge whether a picture shows exactly what a spec asks for.

    Args:
        image: the picture, uint8 [height, width, 3].
        spec: what it must show; nothing else may be on it.

    Raises:
        ValueError: the array is not an 8-bit RGB picture.
    """
    background, objects = detect(image)
    return judge(objects, background, spec, image.shape[1])


def judge(
    objects: tuple[DetectedObject, ...], background: str | None, spec: SceneSpec, side: int
) -> CheckResult:
    """Judge whether these objects on this background are exactly what a spec asks for.

    Args:
        objects: all objects of the picture.
        background: its name, None when it is none of the known ones.
        spec: what the picture must show.
        side: of the picture in pixels.
    """
    crowd = sorted(objects, key=lambda item: -item.radius)[:_LARGEST_CROWD]
    best: tuple[bool, ...] = ()
    best_score = -1.0
    for assignment in _assignments(crowd, spec.groups):
        verdict, score = _judge(assignment, spec, side)
        if score > best_score:
            best, best_score = verdict, score
    shapes, colours, textures, sizes, position = best
    return CheckResult(
        count=len(objects) == sum(group.count for group in spec.groups),
        shapes=shapes,
        colours=colours,
        textures=textures,
        sizes=sizes,
        position=position,
        background=spec.background in (None, background),
        objects=objects,
        detected_background=background,
    )


def _assignments(objects: list[DetectedObject], groups: tuple[Group, ...]) -> Iterator[_Assignment]:
    """Yield every assignment of objects to the groups; a group gets fewer than its count if they run out."""
    if not groups:
        yield ()
        return
    wanted = min(groups[0].count, len(objects))
    for chosen in combinations(range(len(objects)), wanted):
        rest = [item for index, item in enumerate(objects) if index not in chosen]
        for others in _assignments(rest, groups[1:]):
            yield (tuple(objects[index] for index in chosen), *others)


def _judge(assignment: _Assignment, spec: SceneSpec, side: int) -> tuple[tuple[bool, ...], float]:
    """Judge the shapes, colours, textures, sizes and position of one assignment; the score counts hits."""
    score = 0.0
    aspects = []
    for aspect, weight in (("shape", 2.0), ("colour", 1.0), ("texture", 1.0), ("size", 1.0)):
        all_right = True
        for group, members in zip(spec.groups, assignment, strict=True):
            wanted = getattr(group, aspect)
            if wanted is None:
                continue
            right = sum(getattr(item, aspect) == wanted for item in members)
            score += weight * right
            all_right = all_right and right == group.count
        aspects.append(all_right)
    position = spec.relation is None or _satisfies_relation(assignment[0], assignment[1], spec.relation, side)
    return (*aspects, position), score + position


def _satisfies_relation(
    first: tuple[DetectedObject, ...], second: tuple[DetectedObject, ...], relation: str, side: int
) -> bool:
    """Whether every object of the first group is on the right side of every one of the second.

    The direction from middle to middle must also be closer to the relation than to the other axis, so that no
    picture is both "left of" and "above".
    """
    if not first or not second:
        return False
    axis = 0 if relation in ("left of", "right of") else 1
    sign = 1.0 if relation in ("left of", "above") else -1.0
    ahead = np.array([item.centre for item in first])
    behind = np.array([item.centre for item in second])
    offset = behind.mean(axis=0) - ahead.mean(axis=0)
    along, aside = sign * offset[axis], abs(offset[1 - axis])
    ordered = (sign * ahead[:, axis]).max() < (sign * behind[:, axis]).min()
    return bool(ordered and along >= max(_LEAST_OFFSET * side, aside))
