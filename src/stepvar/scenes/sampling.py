"""Random scenes without a prompt, for the training of a VAE."""

from __future__ import annotations

from itertools import product

import numpy as np

from stepvar.scenes.layout import gap, place, whole_canvas
from stepvar.scenes.spec import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    HELD_OUT,
    MAXIMUM_OBJECTS,
    RADIUS_FRACTIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Combination,
    Scene,
    SceneObject,
    Split,
)

_RADIUS_JITTER = 0.04

_ALL_COMBINATIONS: tuple[Combination, ...] = tuple(product(SHAPES, COLOURS, TEXTURES))
_TRAINING_COMBINATIONS = tuple(parts for parts in _ALL_COMBINATIONS if parts not in HELD_OUT)
_HELD_OUT_COMBINATIONS = tuple(parts for parts in _ALL_COMBINATIONS if parts in HELD_OUT)


def draw_radius(rng: np.random.Generator, size: str, canvas: int) -> float:
    """Draw the radius in pixels of an object of a size class: the nominal one, give or take 4 %."""
    return RADIUS_FRACTIONS[size] * canvas * (1 + _RADIUS_JITTER * (2 * rng.random() - 1))


def sample_scene(
    rng: np.random.Generator, *, count: int | None = None, canvas: int = CANVAS, split: Split = "train"
) -> Scene:
    """Draw a random background and `count` (by default one to four) random objects.

    Args:
        rng: the only source of randomness.
        count: number of objects, 1 to 4.
        canvas: side in pixels of the canvas the coordinates refer to.
        split: "train" leaves the held-out combinations out, "heldout" shows at least one, "any" ignores them.

    Raises:
        ValueError: `count` is not between one and four.
    """
    if count is None:
        count = int(rng.integers(1, MAXIMUM_OBJECTS + 1))
    if not 1 <= count <= MAXIMUM_OBJECTS:
        raise ValueError(f"A scene has one to {MAXIMUM_OBJECTS} objects, not {count}.")
    allowed = _TRAINING_COMBINATIONS if split == "train" else _ALL_COMBINATIONS
    combinations = [allowed[rng.integers(len(allowed))] for _ in range(count)]
    if split == "heldout":
        combinations[0] = _HELD_OUT_COMBINATIONS[rng.integers(len(_HELD_OUT_COMBINATIONS))]
    sizes = [SIZES[rng.integers(len(SIZES))] for _ in range(count)]
    radii = [draw_radius(rng, size, canvas) for size in sizes]
    points = place(rng, radii, whole_canvas(canvas), gap(canvas))
    objects = tuple(
        SceneObject(*combination, size, x, y, radius)
        for combination, size, (x, y), radius in zip(combinations, sizes, points, radii, strict=True)
    )
    return Scene(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], objects, canvas)
