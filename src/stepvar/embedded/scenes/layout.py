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
_RELATION_ROUNDS = 80
# Sideways offset of the centres of two related groups, at most so much of the offset along the relation.
_LARGEST_SLANT = 0.6


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


def place_related(
    rng: np.random.Generator, first: list[float], second: list[float], relation: str, canvas: int
) -> Points:
    """Draw centres for two groups of squares so that the first stands in a relation to the second.

    A straight line separates the groups, and the direction from centre to centre is clearly as asked for.

    Args:
        rng: the only source of randomness.
        first: half sides of the squares of the first group, pixels.
        second: half sides of the squares of the second group.
        relation: one of `RELATIONS`.
        canvas: side of the canvas in pixels.

    Returns:
        The centres of the first group followed by those of the second one.

    Raises:
        LayoutError: no placement was found.
    """
    if relation in ("right of", "below"):
        swapped = place_related(rng, second, first, "left of" if relation == "right of" else "above", canvas)
        return swapped[len(second) :] + swapped[: len(second)]
    low, _, high, _ = whole_canvas(canvas)
    distance = gap(canvas)
    start, stop = low + 2 * max(first), high - distance - 2 * max(second)
    for _ in range(_RELATION_ROUNDS if stop >= start else 0):
        line = start + rng.random() * (stop - start)
        try:
            # Laid out from left to right; "above" swaps the axes afterwards.
            points = place(rng, first, (low, low, line, high), distance)
            points += place(rng, second, (line + distance, low, high, high), distance)
        except LayoutError:
            continue
        along, aside = np.mean(points[len(first) :], axis=0) - np.mean(points[: len(first)], axis=0)
        if abs(aside) <= _LARGEST_SLANT * along:
            return points if relation == "left of" else [(y, x) for x, y in points]
    raise LayoutError(f"The objects do not fit the canvas with one group {relation} the other.")
