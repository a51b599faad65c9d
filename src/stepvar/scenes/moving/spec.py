"""Description of a moving scene: objects of the picture grammar and the motion of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stepvar.scenes.spec import BACKGROUNDS, HELD_OUT, Group, Scene, SceneObject

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Motions that change the place, as steps to the right and downwards."""

SCALINGS: dict[str, int] = {"grow": 1, "shrink": -1}
"""Motions that change the size, as signs of the change."""

MOTIONS: tuple[str, ...] = (*DIRECTIONS, *SCALINGS, "still")

MAXIMUM_MOVING_OBJECTS = 2


@dataclass(frozen=True)
class MovingObject:
    """One object that a prompt asks for, and its motion.

    Raises:
        ValueError: the motion is unknown, or the group holds several objects or names a size, which a motion
            may change.
    """

    group: Group
    motion: str

    def __post_init__(self) -> None:
        if self.motion not in MOTIONS:
            raise ValueError(f"There is no motion '{self.motion}'; there are {', '.join(MOTIONS)}.")
        if self.group.count != 1 or self.group.size is not None:
            raise ValueError(f"A moving object must be single and without a size, not {self.group}.")


@dataclass(frozen=True)
class VideoSpec:
    """Content that a video must show: exactly these objects, each with its motion, on a background.

    Raises:
        ValueError: there are no objects or more than two, or the background is unknown.
    """

    objects: tuple[MovingObject, ...]
    background: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= MAXIMUM_MOVING_OBJECTS:
            raise ValueError(f"A video shows 1 to {MAXIMUM_MOVING_OBJECTS} objects, not {len(self.objects)}.")
        if self.background not in (None, *BACKGROUNDS):
            raise ValueError(
                f"There is no background '{self.background}'; there are {', '.join(BACKGROUNDS)}."
            )

    @property
    def held_out(self) -> bool:
        """Whether it names a combination of shape, colour and texture that training never shows."""
        return any(item.group.combination in HELD_OUT for item in self.objects)


@dataclass(frozen=True)
class MovingScene:
    """A scene at its beginning and at its end; in between everything changes evenly.

    Attributes:
        first, last: The same objects in the same order, on the same background and canvas.
    """

    first: Scene
    last: Scene

    def at(self, time: float) -> Scene:
        """The scene at a time from 0, the beginning, to 1, the end."""
        pairs = zip(self.first.objects, self.last.objects, strict=True)
        return replace(self.first, objects=tuple(_between(start, end, time) for start, end in pairs))


def _between(start: SceneObject, end: SceneObject, time: float) -> SceneObject:
    x, y, radius = (
        (1.0 - time) * getattr(start, name) + time * getattr(end, name) for name in ("x", "y", "radius")
    )
    return replace(start, x=x, y=y, radius=radius)
