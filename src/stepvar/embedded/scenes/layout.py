"""Placement of objects: random, never overlapping, never outside of the canvas."""

from __future__ import annotations

import numpy as np

from stepvar.embedded.scenes.spec import CANVAS

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

Points = list[tuple[float, float]]

_GAP_FRACTION = 6 / CANVAS
_MARGIN_FRACTION = 4 / CANVAS
_RANDOM_ROUNDS = 4
_CANDIDATES = 24


class LayoutError(ValueError):
    """The objects asked for do not fit the canvas."""


def whole_canvas(canvas: int) -> Rectangle:
    """Return the part of a canvas that objects may cover: all of it but a narrow margin."""
    margin = _MARGIN_FRACTION * canvas
    return (margin, margin, canvas - margin, canvas - margin)


def gap(canvas: int) -> float:
    """Return the smallest distance, in pixels, kept between the bounding squares of two objects."""
    return _GAP_FRACTION * canvas


def place(rng: np.random.Generator, radii: list[float], rectangle: Rectangle, distance: float) -> Points:
    """Draw centres for squares of half sides `radii` inside a rectangle, at least `distance` apart.

    Free placement is tried first; a jittered grid, which needs the least room, is the last resort.

    Raises:
        LayoutError: not even a grid fits.
    """
    for _ in range(_RANDOM_ROUNDS):
        points = _place_freely(rng, radii, rectangle, distance)
        if points is not None:
            return points
    return _place_on_grid(rng, radii, rectangle, distance)


def _place_freely(
    rng: np.random.Generator, radii: list[float], rectangle: Rectangle, distance: float
) -> Points | None:
    """Drop the squares one after another, largest first; None as soon as one finds no room."""
    left, top, right, bottom = rectangle
    points: dict[int, tuple[float, float]] = {}
    for index in sorted(range(len(radii)), key=lambda position: -radii[position]):
        radius = radii[index]
        width, height = right - left - 2 * radius, bottom - top - 2 * radius
        if width < 0 or height < 0:
            return None
        for across, down in rng.random((_CANDIDATES, 2)).tolist():
            x, y = left + radius + across * width, top + radius + down * height
            if all(
                max(abs(x - other_x), abs(y - other_y)) >= radius + radii[other] + distance
                for other, (other_x, other_y) in points.items()
            ):
                points[index] = (x, y)
                break
        else:
            return None
    return [points[index] for index in range(len(radii))]


def _place_on_grid(
    rng: np.random.Generator, radii: list[float], rectangle: Rectangle, distance: float
) -> Points:
    """Put one square into each cell of a grid that holds the largest one, at a random place in its cell."""
    left, top, right, bottom = rectangle
    count, side = len(radii), 2 * max(radii)
    grids = []
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        cell_width = (right - left - (columns - 1) * distance) / columns
        cell_height = (bottom - top - (rows - 1) * distance) / rows
        if min(cell_width, cell_height) >= side:
            grids.append((columns, rows, cell_width, cell_height))
    if not grids:
        raise LayoutError(
            f"{count} objects of radius up to {side / 2:.0f} px do not fit the room they are given."
        )
    columns, rows, cell_width, cell_height = grids[rng.integers(len(grids))]
    points = []
    for radius, cell in zip(radii, rng.permutation(columns * rows), strict=False):
        row, column = divmod(int(cell), columns)
        across, down = rng.random(2)
        x = left + column * (cell_width + distance) + radius + across * (cell_width - 2 * radius)
        y = top + row * (cell_height + distance) + radius + down * (cell_height - 2 * radius)
        points.append((x, y))
    return points
