"""Moving scenes that show what a spec asks for, and their rendering frame by frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.grammar import complete, pick
from stepvar.scenes.layout import LayoutError, whole_canvas
from stepvar.scenes.moving.spec import DIRECTIONS, SCALINGS, MovingScene, VideoSpec
from stepvar.scenes.render import render
from stepvar.scenes.spec import BACKGROUNDS, Scene, SceneObject, Split

CANVAS = 112
"""Side of the frames in pixels."""

FRAMES = 9

_SMALLEST, _LARGEST = 0.158, 0.172
"""Radius of an object that neither grows nor shrinks, in sides of the canvas: the smallest one whose colour
and texture are still recognisable at 112 pixels."""

_LEAST_GROWTH, _MOST_GROWTH = 1.35, 1.45
_LEAST_TRAVEL, _MOST_TRAVEL = 0.15, 0.2
"""In sides of the canvas: a token in the time that one stands for, which a small tokenizer can follow."""

_GAP = 0.05
"""In sides of the canvas: more than five pixels, which the checker does not bridge."""

_JITTER = 0.09
_SIDE, _NARROW_SIDE, _WIDE_SIDE = 0.25, 0.2, 0.32
_ROUNDS, _ATTEMPTS = 100, 64

Floats = NDArray[np.float64]


def scene_for(
    rng: np.random.Generator, spec: VideoSpec, *, split: Split = "train", canvas: int = CANVAS
) -> MovingScene:
    """Draws a moving scene that shows exactly what a spec asks for; what it leaves open is random.

    Args:
        rng: The only source of randomness.
        spec: What to show.
        split: "train" leaves no combination open to chance that is held out.
        canvas: Side of the frames in pixels.

    Raises:
        LayoutError: The objects do not fit, or their paths would collide.
    """
    looks = [complete(rng, item.group, avoid_held_out=split == "train") for item in spec.objects]
    background = spec.background or pick(rng, BACKGROUNDS)
    motions = [item.motion for item in spec.objects]
    middles = _middles(motions)
    for _ in range(_ROUNDS):
        pairs = zip(motions, middles, strict=True)
        paths = np.stack([_paths(rng, motion, middle, canvas) for motion, middle in pairs])
        apart = (
            np.ones(_ATTEMPTS, dtype=bool)
            if len(paths) == 1
            else _keep_apart(paths[0], paths[1], _GAP * canvas)
        )
        if apart.any():
            break
    else:
        raise LayoutError(f"Two objects with the motions {' and '.join(motions)} do not fit the canvas.")
    first, last = paths[:, int(np.argmax(apart))].transpose(1, 0, 2).tolist()
    scenes = (
        tuple(SceneObject(*look, "medium", *place) for look, place in zip(looks, places, strict=True))
        for places in (first, last)
    )
    return MovingScene(*(Scene(background, objects, canvas) for objects in scenes))


def render_video(
    scene: MovingScene, size: int = CANVAS, frames: int = FRAMES, seed: int = 0
) -> NDArray[np.uint8]:
    """Renders a moving scene; the background stands still.

    Args:
        scene: What to draw.
        size: Side of the frames in pixels.
        frames: How many, evenly spread over the motion, both ends included.
        seed: Chooses the irregularities of the background.

    Returns:
        The frames, uint8 [frames, size, size, 3].
    """
    times = np.linspace(0.0, 1.0, frames)
    return np.stack([render(scene.at(float(time)), size, seed) for time in times])


def _middles(motions: list[str]) -> list[tuple[float, float]]:
    """Middles of the paths, in sides of the canvas: x and y of each.

    A prompt thus determines where its objects are but for some jitter, as in pictures: two stand in reading
    order, one above the other where their paths are horizontal, else side by side.
    """
    if len(motions) == 1:
        return [(0.5, 0.5)]
    horizontal, vertical = (
        [motion in DIRECTIONS and DIRECTIONS[motion][axis] != 0 for motion in motions] for axis in (0, 1)
    )
    if any(horizontal) and not any(vertical):
        return [(0.5, _SIDE), (0.5, 1.0 - _SIDE)]
    # A horizontal path beside a vertical one needs more than half of the width.
    sides = [_SIDE if not any(horizontal) else _WIDE_SIDE if wide else _NARROW_SIDE for wide in horizontal]
    return [(sides[0], 0.5), (1.0 - sides[1], 0.5)]


def _paths(rng: np.random.Generator, motion: str, middle: tuple[float, float], canvas: int) -> Floats:
    """Random paths of one object that stay inside of the canvas: [attempts, 2 ends, x, y and radius]."""

    def draw(least: float, most: float) -> Floats:
        return rng.uniform(least, most, (_ATTEMPTS, 1))

    small = canvas * draw(_SMALLEST, _LARGEST)
    large = small * (draw(_LEAST_GROWTH, _MOST_GROWTH) if motion in SCALINGS else 1.0)
    travel = canvas * draw(_LEAST_TRAVEL, _MOST_TRAVEL) * np.asarray(DIRECTIONS.get(motion, (0, 0)))
    low, _, high, _ = whole_canvas(canvas)
    start = canvas * (np.asarray(middle) + rng.uniform(-_JITTER, _JITTER, (_ATTEMPTS, 2))) - travel / 2
    start = np.clip(start, low + large - np.minimum(travel, 0.0), high - large - np.maximum(travel, 0.0))
    radii = (large, small) if motion == "shrink" else (small, large)
    ends = [np.hstack(end) for end in zip((start, start + travel), radii, strict=True)]
    return np.stack(ends, axis=1)


def _keep_apart(first: Floats, second: Floats, distance: float) -> NDArray[np.bool_]:
    """In which attempts [attempts] the bounding squares of two objects always stay some pixels apart."""
    times = np.linspace(0.0, 1.0, 2 * FRAMES)
    offset = np.abs(_interpolate(first - second, times)[..., :2]).max(axis=-1)
    return (offset >= _interpolate(first + second, times)[..., 2] + distance).all(axis=1)


def _interpolate(ends: Floats, times: Floats) -> Floats:
    """Numbers between two ends [attempts, 2, n] at some times [T], [attempts, T, n]."""
    return ends[:, :1] + times[None, :, None] * (ends[:, 1:] - ends[:, :1])
