"""Rendering of scenes: a pure function from a scene and a seed to 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.backgrounds import background
from stepvar.scenes.palette import OBJECT_COLOURS, OUTLINE, second_tone
from stepvar.scenes.spec import CANVAS, TEXTURES, Scene, SceneObject

TEXTURE_PERIOD: int = 8
OUTLINE_WIDTH: float = 2.0

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Distance = Callable[[Floats, Floats, float], Floats]

_SQUARE_HALF_SIDE = 0.88
_RING_HOLE = 0.42
_CROSS_ARM = 0.36
_STAR_INNER = 0.5
_DOT_RADIUS = 2.0


def render(
    scene: Scene, size: int = CANVAS, seed: int = 0, shapes: Mapping[str, Distance] | None = None
) -> Bytes:
    """Render a scene.

    Objects scale with the canvas; the periods of textures and the width of outlines stay in pixels, and
    textures are anchored to the pixel grid of the canvas, not to the objects.

    Args:
        scene: what to draw.
        size: side of the picture in pixels.
        seed: chooses the irregularities of the background.
        shapes: distances of further shapes by name, as `signed_distance` gives them: (offsets to the right,
            offsets downwards, radius) -> pixels to the edge.

    Returns:
        The picture, uint8 [size, size, 3].
    """
    known = {**_DISTANCES, **(shapes or {})}
    picture = background(scene.background, size, np.random.default_rng(seed))
    scale = size / scene.canvas
    for item in scene.objects:
        _draw(picture, item, scale, known[item.shape])
    return picture


def texture_mask(texture: str, size: int) -> Floats:
    """Return where a texture shows the second tone, float32 [size, size] in [0, 1]; read only."""
    return _texture_masks(size)[TEXTURES.index(texture)]


def signed_distance(shape: str, x: Floats, y: Floats, radius: float) -> Floats:
    """Return the distance in pixels to the edge of a shape, negative inside.

    Args:
        shape: one of `SHAPES`.
        x: offsets from the centre, pixels to the right; broadcast against `y`.
        y: offsets from the centre, pixels downwards.
        radius: half the side of the square that bounds the shape.
    """
    return _DISTANCES[shape](x, y, radius)


@cache
def _texture_masks(size: int) -> Floats:
    """Tile the 8 x 8 patterns of all textures over a canvas, float32 [textures, size, size]."""
    row, column = np.mgrid[:TEXTURE_PERIOD, :TEXTURE_PERIOD]
    half = TEXTURE_PERIOD // 2
    centre = (TEXTURE_PERIOD - 1) / 2
    patterns = {
        "plain": np.zeros_like(row),
        "striped": row >= half,
        "checked": (row >= half) != (column >= half),
        "dotted": np.clip(_DOT_RADIUS + 0.5 - np.hypot(row - centre, column - centre), 0, 1),
    }
    repeats = -(-size // TEXTURE_PERIOD)
    masks = np.stack([np.tile(patterns[name], (repeats, repeats)) for name in TEXTURES]).astype(np.float32)
    masks = np.ascontiguousarray(masks[:, :size, :size])
    masks.setflags(write=False)
    return masks


@cache
def _pixel_centres(size: int) -> Floats:
    """Return the coordinates of the pixel centres along one axis."""
    return np.arange(size, dtype=np.float32) + np.float32(0.5)


def _draw(picture: Bytes, item: SceneObject, scale: float, shape: Distance) -> None:
    """Blend one object into the picture; only its bounding box is touched."""
    size = picture.shape[0]
    x, y, radius = item.x * scale, item.y * scale, item.radius * scale
    left, right = max(0, int(x - radius - 1)), min(size, int(x + radius + 2))
    top, bottom = max(0, int(y - radius - 1)), min(size, int(y + radius + 2))
    centres = _pixel_centres(size)
    across = (centres[left:right] - np.float32(x))[None, :]
    down = (centres[top:bottom] - np.float32(y))[:, None]
    distance = shape(across, down, radius)
    body = np.clip(0.5 - distance, 0, 1)[..., None]
    fill = np.clip(0.5 - OUTLINE_WIDTH - distance, 0, 1)[..., None]
    base = np.asarray(OBJECT_COLOURS[item.colour], dtype=np.float32)
    surface = base - np.asarray(OUTLINE, dtype=np.float32)
    if item.texture != "plain":
        contrast = np.asarray(second_tone(item.colour), dtype=np.float32) - base
        surface = surface + texture_mask(item.texture, size)[top:bottom, left:right, None] * contrast
    region = picture[top:bottom, left:right]
    colour = fill * surface + np.asarray(OUTLINE, dtype=np.float32)
    picture[top:bottom, left:right] = region + body * (colour - region) + np.float32(0.5)


def _circle(x: Floats, y: Floats, radius: float) -> Floats:
    return np.sqrt(x * x + y * y) - np.float32(radius)


def _ring(x: Floats, y: Floats, radius: float) -> Floats:
    middle, half_width = (1 + _RING_HOLE) / 2 * radius, (1 - _RING_HOLE) / 2 * radius
    return np.abs(np.sqrt(x * x + y * y) - np.float32(middle)) - np.float32(half_width)


def _square(x: Floats, y: Floats, radius: float) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(_SQUARE_HALF_SIDE * radius)


def _cross(x: Floats, y: Floats, radius: float) -> Floats:
    arm = np.float32(_CROSS_ARM * radius)
    across, down = np.abs(x), np.abs(y)
    # Union of two bars; close to the edge the smaller of the two distances is exact enough.
    length = np.float32(radius)
    return np.minimum(
        np.maximum(across - length, down - arm),
        np.maximum(across - arm, down - length),
    )


def _triangle(x: Floats, y: Floats, radius: float) -> Floats:
    # Isosceles, nearly equilateral; the base ends at the sides of the bounding square.
    half_base, top, bottom = radius, -0.9 * radius, 0.85 * radius
    height = bottom - top
    slope = float(np.hypot(half_base, height))
    sides = (np.abs(x) * np.float32(height) - (y - np.float32(top)) * np.float32(half_base)) / np.float32(
        slope
    )
    return np.maximum(sides, y - np.float32(bottom))


def _star(x: Floats, y: Floats, radius: float) -> Floats:
    # Two reflections fold the plane onto the upper half of one tip, where a single edge remains.
    tenth = np.pi / 5
    x, y = np.abs(x), -(y - np.float32(0.05 * radius))
    for sign in (1.0, -1.0):
        normal_x, normal_y = np.float32(sign * np.cos(tenth)), np.float32(-np.sin(tenth))
        excess = np.maximum(normal_x * x + normal_y * y, 0) * 2
        x, y = x - excess * normal_x, y - excess * normal_y
    x = np.abs(x)
    tip = 1.04 * radius
    inner_x, inner_y = _STAR_INNER * tip * np.sin(tenth), _STAR_INNER * tip * np.cos(tenth)
    edge_x, edge_y = inner_x, inner_y - tip
    length = float(np.hypot(edge_x, edge_y))
    return (x * np.float32(-edge_y) + (y - np.float32(tip)) * np.float32(edge_x)) / np.float32(length)


_DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}
