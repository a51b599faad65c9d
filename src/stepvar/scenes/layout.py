"""Placement of objects: never overlapping, never outside of the canvas."""

from __future__ import annotations

import numpy as np

from stepvar.scenes.spec import CANVAS

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

Points = list[tuple[float, float]]

_GAP_FRACTION = 6 / CANVAS
_MARGIN_FRACTION = 4 / CANVAS
_RANDOM_ROUNDS = 4
_CANDIDATES = 24
# Largest extent of the jitter of an object in its cell.
_JITTER_FRACTION = 0.15


class LayoutError(ValueError):
    """The objects do not fit the canvas."""


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


def arrange(
    rng: np.random.Generator, first: list[float], second: list[float], relation: str | None, canvas: int
) -> Points:
    """Draw centres for the objects that a prompt names, in reading order or as their relation requires.

    Every object stands somewhere about the middle of a cell of its own: two side by side, three as two above
    one, four two by two; of two related groups each has a half of the canvas, stacked across the relation.
    A prompt thus fixes where its objects are but for some jitter. The tokens of one scale are drawn
    independently of each other, so that with many possible layouts they would mix several. A single object
    may stand anywhere.

    Args:
        rng: the only source of randomness.
        first: half sides of the bounding squares of the first group, pixels.
        second: half sides of those of the second group; empty if there is none.
        relation: one of `RELATIONS`, in which the first group stands to the second; None for none.
        canvas: side of the canvas in pixels.

    Returns:
        The centres of the first group followed by those of the second one.

    Raises:
        LayoutError: an object is larger than its cell.
    """
    radii = first + second
    if relation is None:
        if len(radii) == 1:
            return place(rng, radii, whole_canvas(canvas), gap(canvas))
        return _in_cells(rng, radii, _reading_order(len(radii), canvas), canvas)
    before, after = (first, second) if relation in ("left of", "above") else (second, first)
    low, _, high, _ = whole_canvas(canvas)
    half = (high - low - gap(canvas)) / 2
    # Laid out from left to right; "above" and "below" swap the axes afterwards.
    cells = _stack(len(before), (low, low, low + half, high), canvas)
    cells += _stack(len(after), (high - half, low, high, high), canvas)
    points = _in_cells(rng, before + after, cells, canvas)
    if relation in ("above", "below"):
        points = [(y, x) for x, y in points]
    return points if before is first else points[len(before) :] + points[: len(before)]


def _reading_order(count: int, canvas: int) -> list[Rectangle]:
    """Cells for two to four objects: a row of two, and what is left in a row below it, centred."""
    low, _, high, _ = whole_canvas(canvas)
    half = (high - low - gap(canvas)) / 2
    rows = [(low, high)] if count == 2 else [(low, low + half), (high - half, high)]
    cells = []
    for index, (top, bottom) in enumerate(rows):
        columns = [low, high - half] if count - 2 * index >= 2 else [(low + high - half) / 2]
        cells += [(left, top, left + half, bottom) for left in columns]
    return cells


def _stack(count: int, rectangle: Rectangle, canvas: int) -> list[Rectangle]:
    """A rectangle cut into cells one below the other."""
    left, top, right, bottom = rectangle
    height = (bottom - top + gap(canvas)) / count
    return [
        (left, top + index * height, right, top + (index + 1) * height - gap(canvas))
        for index in range(count)
    ]


def _in_cells(rng: np.random.Generator, radii: list[float], cells: list[Rectangle], canvas: int) -> Points:
    """A square into every cell, off its middle by some jitter that stays in the cell."""
    points = []
    for radius, (left, top, right, bottom) in zip(radii, cells, strict=True):
        room = min(right - left, bottom - top) - 2 * radius
        if room < 0:
            raise LayoutError(
                f"{len(radii)} objects of radius up to {max(radii):.0f} px do not fit the room they have."
            )
        jitter = [
            (rng.random() - 0.5) * min(side - 2 * radius, _JITTER_FRACTION * canvas)
            for side in (right - left, bottom - top)
        ]
        points.append(((left + right) / 2 + jitter[0], (top + bottom) / 2 + jitter[1]))
    return points
