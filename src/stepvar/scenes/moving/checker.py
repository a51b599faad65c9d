"""Checker of videos: whether one shows what a prompt asks for, from the pixels of some frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.checker import detect
from stepvar.scenes.moving.spec import DIRECTIONS, SCALINGS, MovingObject, VideoSpec
from stepvar.scenes.recognition import DetectedObject

_CHECKED_FRAMES = 5
"""Frames that are checked: the last one and others evenly before it."""

_LEAST_TRAVEL = 0.09
"""Least displacement of a moving object, in sides of the frame; rendered ones move nearly twice as far."""

_MOST_SLANT = 0.5
"""Largest displacement across the direction of a motion, relative to that along it."""

_MOST_DRIFT = 0.06
"""Largest displacement of an object that stays in its place, in sides of the frame."""

_LEAST_GROWTH = math.log(1.17)
"""Least change of a growing or shrinking object, as the logarithm of the ratio of extents."""

_MOST_SIZE_CHANGE = math.log(1.13)
"""Largest change of an object that keeps its size, as such a logarithm."""

_LEAST_RIGHT = 0.75
"""Share of the checked frames that must show an object as specified."""

_Track = list[DetectedObject | None]


@dataclass(frozen=True)
class VideoCheckResult:
    """Verdict on one video, aspect by aspect; an aspect that the prompt leaves open is right.

    Attributes:
        count: Whether every checked frame shows the specified number of objects.
        shapes, colours, textures: Whether every object has them, in most checked frames.
        motion: Whether every object moves as specified.
        background: Whether the last frame has it.
        motions: Motions of the best matching objects; None where it is no known one.
    """

    count: bool
    shapes: bool
    colours: bool
    textures: bool
    motion: bool
    background: bool
    motions: tuple[str | None, ...]

    @property
    def passed(self) -> bool:
        """Whether all aspects are right."""
        aspects = (self.count, self.shapes, self.colours, self.textures, self.motion, self.background)
        return all(aspects)


def check(frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], spec: VideoSpec) -> VideoCheckResult:
    """Checks whether a video shows exactly what a spec asks for.

    Args:
        frames: The frames, each uint8 [height, width, 3], two or more.
        spec: What they must show; nothing else may be on them.

    Raises:
        ValueError: A frame is not an 8-bit RGB picture, or there is only one.
    """
    if len(frames) < 2:
        raise ValueError(f"A video has two frames or more, not {len(frames)}.")
    # The first frame of a decoded video may be a copy of the second, so the last one is more informative.
    places = np.unique(np.linspace(0, len(frames) - 1, _CHECKED_FRAMES).round().astype(int))
    seen = [detect(np.asarray(frames[place])) for place in places]
    side = frames[0].shape[1]
    crowds = [objects for _, objects in seen]
    judged = [_judge(tracks, spec.objects, side) for tracks in _tracks(crowds, len(spec.objects))]
    shapes, colours, textures, motion, motions = max(judged, key=lambda verdict: sum(verdict[:4]))
    return VideoCheckResult(
        count=all(len(objects) == len(spec.objects) for objects in crowds),
        shapes=shapes,
        colours=colours,
        textures=textures,
        motion=motion,
        background=spec.background in (None, seen[-1][0]),
        motions=motions,
    )


def motion_of(track: Sequence[DetectedObject | None], side: int) -> str | None:
    """Motion of an object, of `MOTIONS`; None when it is none of them, or the object cannot be tracked.

    Args:
        track: The object in some frames, in order; None where it was not found.
        side: Of the frames in pixels.
    """
    first, last = track[0], track[-1]
    if first is None or last is None:
        return None
    across, down = ((end - start) / side for start, end in zip(first.centre, last.centre, strict=True))
    growth = math.log(_extent(last) / _extent(first))
    if max(abs(across), abs(down)) <= _MOST_DRIFT:
        if abs(growth) <= _MOST_SIZE_CHANGE:
            return "still"
        signs = {sign: name for name, sign in SCALINGS.items()}
        return signs[int(math.copysign(1, growth))] if abs(growth) >= _LEAST_GROWTH else None
    if abs(growth) > _LEAST_GROWTH:
        return None
    for name, (right, below) in DIRECTIONS.items():
        along, aside = across * right + down * below, abs(across * below) + abs(down * right)
        if along >= _LEAST_TRAVEL and aside <= _MOST_SLANT * along:
            return name
    return None


def _extent(item: DetectedObject) -> float:
    """Sum of width and height of an object; it measures growth without knowledge of the shape."""
    left, top, right, bottom = item.box
    return float(right - left + bottom - top)


def _tracks(crowds: Sequence[Sequence[DetectedObject]], wanted: int) -> Iterator[list[_Track]]:
    """Every order of the objects of the last frame, each tracked back to the first by nearness."""
    last = _largest(crowds[-1], wanted)
    for order in permutations(range(wanted)):
        tracks: list[_Track] = [[last[index] if index < len(last) else None] for index in order]
        for crowd in reversed(crowds[:-1]):
            _extend(tracks, _largest(crowd, wanted))
        yield [list(reversed(track)) for track in tracks]


def _largest(objects: Sequence[DetectedObject], count: int) -> list[DetectedObject]:
    return sorted(objects, key=lambda item: -item.radius)[:count]


def _extend(tracks: list[_Track], candidates: list[DetectedObject]) -> None:
    """Lengthens all tracks by the candidates that are nearest to them, all in all."""
    padded: list[DetectedObject | None] = [*candidates, *[None] * (len(tracks) - len(candidates))]
    best = min(
        permutations(padded),
        key=lambda order: sum(_distance(track, item) for track, item in zip(tracks, order, strict=True)),
    )
    for track, item in zip(tracks, best, strict=True):
        track.append(item)


def _distance(track: _Track, item: DetectedObject | None) -> float:
    known = next((one for one in reversed(track) if one is not None), None)
    if known is None or item is None:
        return 0.0
    return math.dist(known.centre, item.centre)


def _judge(
    tracks: list[_Track], objects: Sequence[MovingObject], side: int
) -> tuple[bool, bool, bool, bool, tuple[str | None, ...]]:
    pairs = list(zip(tracks, objects, strict=True))
    shapes, colours, textures = (
        all(_is_seen(track, aspect, getattr(item.group, aspect)) for track, item in pairs)
        for aspect in ("shape", "colour", "texture")
    )
    motions = tuple(motion_of(track, side) for track in tracks)
    right = all(found == item.motion for found, item in zip(motions, objects, strict=True))
    return shapes, colours, textures, right, motions


def _is_seen(track: _Track, aspect: str, wanted: str | None) -> bool:
    """Whether an object has what is wanted in most of the frames."""
    if wanted is None:
        return True
    right = sum(item is not None and getattr(item, aspect) == wanted for item in track)
    return right >= _LEAST_RIGHT * len(track)
