"""Shape, size, colour and texture of one blob of a segmented picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.palette import OBJECT_COLOURS, second_tone
from stepvar.scenes.render import OUTLINE_WIDTH, TEXTURE_PERIOD, signed_distance, texture_mask
from stepvar.scenes.segmentation import DIFFERENT, Blob, grey
from stepvar.scenes.spec import RADIUS_FRACTIONS, SHAPES, SIZES, TEXTURES

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SOLID_SHAPES = tuple(shape for shape in SHAPES if shape != "ring")
_LEAST_OVERLAP = 0.72
_HOLE_RADIUS = 0.42
_LEAST_FILLING = 0.15
_OUTLINE_DARKNESS = 0.85
_INNER_MARGIN = OUTLINE_WIDTH + 1.5
_PURE_SHARE = 0.35
_LEAST_CHROMA = 64.0
_LEAST_WHITE = 165.0
_LARGEST_COLOUR_DIFFERENCE = 45.0
_MIXTURE_SHARES = np.linspace(0.0, 0.5, 6)
_MIXTURE_PENALTY = 25.0
_LIGHTNESS_WEIGHT = 0.8
_LEAST_CONTRAST = 0.18
_LARGEST_UNEVENNESS = 0.3


@dataclass(frozen=True)
class DetectedObject:
    """What a blob looks like; None stands for "none of the known ones".

    `box` is left, top, right, bottom in pixels (the last two exclusive); `radius` is half the side of the
    bounding square the object would have been drawn with.
    """

    shape: str | None
    colour: str | None
    texture: str | None
    size: str
    box: tuple[int, int, int, int]
    radius: float

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box in pixels."""
        left, top, right, bottom = self.box
        return ((left + right) / 2, (top + bottom) / 2)


def recognise(picture: Floats, difference: Floats, blob: Blob) -> DetectedObject:
    """Describe one blob.

    Args:
        picture: float32 [height, width, 3], levels from 0 to 255.
        difference: float32 [height, width], RGB distance of each pixel to the background.
        blob: where to look.
    """
    shape, inside = _fit_shape(picture, difference, blob)
    window = picture[blob.top : blob.bottom, blob.left : blob.right]
    surface = window[inside]
    colour, texture = None, None
    if len(surface) >= TEXTURE_PERIOD**2:
        colour, base = _recognise_colour(surface)
        texture = _recognise_texture(surface, inside, blob, base, colour)
    # The area suffers less from lost tips than the box does.
    radius = float(np.sqrt(blob.mask.sum() / _area(shape or "circle")))
    fraction = radius / picture.shape[1]
    size = min(SIZES, key=lambda name: abs(np.log(fraction / RADIUS_FRACTIONS[name])))
    return DetectedObject(
        shape, colour, texture, size, (blob.left, blob.top, blob.right, blob.bottom), radius
    )


@cache
def _extents(shape: str) -> tuple[float, float, float, float]:
    """Return the bounding box (left, top, right, bottom) of a shape of radius one."""
    offsets = np.linspace(-1.1, 1.1, 441, dtype=np.float32)
    rows, columns = np.nonzero(signed_distance(shape, offsets[None, :], offsets[:, None], 1.0) <= 0)
    return (
        float(offsets[columns.min()]),
        float(offsets[rows.min()]),
        float(offsets[columns.max()]),
        float(offsets[rows.max()]),
    )


@cache
def _area(shape: str) -> float:
    """Return the area of the silhouette, holes filled, of a shape of radius one."""
    offsets = np.linspace(-1.1, 1.1, 441, dtype=np.float32)
    silhouette = "circle" if shape == "ring" else shape
    covered = signed_distance(silhouette, offsets[None, :], offsets[:, None], 1.0) <= 0
    return float(covered.sum()) * float(offsets[1] - offsets[0]) ** 2


def _fit_shape(picture: Floats, difference: Floats, blob: Blob) -> tuple[str | None, Mask]:
    """Find the shape whose silhouette, scaled to the box of the blob, covers the blob best.

    Returns:
        The shape (None if none fits) and the mask, as large as the box, of pixels well inside of the outline.
    """
    best_overlap, best_shape, best_distance = -1.0, "", np.zeros_like(blob.mask, np.float32)
    for candidate in _SOLID_SHAPES:
        radius, across, down = _align(candidate, blob)
        distance = signed_distance(candidate, across, down, radius)
        silhouette = distance < 0
        overlap = float(np.sum(silhouette & blob.mask) / np.sum(silhouette | blob.mask))
        if overlap > best_overlap:
            best_overlap, best_shape, best_distance = overlap, candidate, distance
    radius, across, down = _align(best_shape, blob)
    shape: str | None = best_shape
    if _has_hole(picture, difference, blob, np.hypot(across, down), radius):
        shape = "ring" if best_shape == "circle" else None
        best_distance = signed_distance("ring", across, down, radius)
    if best_overlap < _LEAST_OVERLAP:
        shape = None
    return shape, (best_distance < -_INNER_MARGIN) & blob.mask


def _has_hole(picture: Floats, difference: Floats, blob: Blob, distance: Floats, radius: float) -> bool:
    """Whether the background shows through the middle, behind an inner outline.

    Args:
        picture: float32 [height, width, 3], levels from 0 to 255.
        difference: float32 [height, width], RGB distance of each pixel to the background.
        blob: where to look.
        distance: distance of each pixel of the box to the middle of the shape, pixels.
        radius: radius of the shape, pixels.
    """
    window = (slice(blob.top, blob.bottom), slice(blob.left, blob.right))
    edge = _HOLE_RADIUS * radius
    hole = distance < max(edge - OUTLINE_WIDTH, 2.0)
    if float(np.mean(difference[window][hole] > DIFFERENT)) >= _LEAST_FILLING:
        return False
    # White and grey blur to the colour of stone, so the outline has to be there, too, give or take a pixel.
    region = grey(picture[window])
    darkest = min(
        float(region[(distance >= edge + shift) & (distance < edge + shift + OUTLINE_WIDTH)].mean())
        for shift in (-1.0, 0.0, 1.0)
    )
    return darkest < _OUTLINE_DARKNESS * float(region[hole].mean())


def _align(shape: str, blob: Blob) -> tuple[float, Floats, Floats]:
    """Return the radius at which a shape fills a box, and the offsets of the pixels from its centre."""
    left, top, right, bottom = _extents(shape)
    width, height = blob.right - blob.left, blob.bottom - blob.top
    radius = 0.5 * (width / (right - left) + height / (bottom - top))
    centre_x = width / 2 - radius * (left + right) / 2
    centre_y = height / 2 - radius * (top + bottom) / 2
    across = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5 - centre_x)
    down = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - centre_y)
    return radius, across, down


def _recognise_colour(surface: Floats) -> tuple[str | None, Floats]:
    """Name the base colour of a surface, float32 [pixels, 3], and return its mean level [3].

    The second tone is nearly grey, so the most saturated third of the pixels shows the base colour alone.
    Without saturated pixels the object is white and its brightest pixels show the base colour.
    """
    red, green, blue = surface.T
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    pure = _mean_of_largest(surface, chroma)
    if pure.max() - pure.min() < _LEAST_CHROMA:
        pure = _mean_of_largest(surface, grey(surface))
        return ("white" if pure.mean() > _LEAST_WHITE else None), pure
    names, mixtures = _mixtures()
    differences = np.linalg.norm(mixtures - _perceptual(pure), axis=-1) + _MIXTURE_PENALTY * _MIXTURE_SHARES
    best = int(np.argmin(differences.min(axis=1)))
    return (names[best] if differences[best].min() < _LARGEST_COLOUR_DIFFERENCE else None), pure


@cache
def _mixtures() -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the names of the saturated colours and what blurring them into the second tone makes of them.

    The second value is in the perceptual space, float64 [colours, shares, 3]; without it, a blurred check of
    purple and cream would pass for pink.
    """
    names = tuple(name for name in OBJECT_COLOURS if name != "white")
    mixtures = []
    for name in names:
        base, second = np.asarray(OBJECT_COLOURS[name]), np.asarray(second_tone(name))
        mixtures.append([_perceptual(base + share * (second - base)) for share in _MIXTURE_SHARES])
    return names, np.asarray(mixtures)


def _mean_of_largest(surface: Floats, keys: Floats) -> Floats:
    """Return the mean of the pixels with the largest keys."""
    count = max(1, int(_PURE_SHARE * len(keys)))
    return surface[np.argpartition(keys, -count)[-count:]].mean(axis=0)


def _perceptual(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """Convert one sRGB colour to CIE Lab with lightness counting a little less than hue."""
    level = np.clip(np.asarray(rgb, dtype=np.float64) / 255, 0, 1)
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.089]))
    return np.array([_LIGHTNESS_WEIGHT * (116 * y - 16), 500 * (x - y), 200 * (y - z)])


@cache
def _shifted_patterns() -> tuple[tuple[str, ...], Floats]:
    """Return all textures at all shifts: their names and levels, float32 [patterns, 64]."""
    names, levels = [], []
    for texture in TEXTURES[1:]:
        cell = texture_mask(texture, TEXTURE_PERIOD)
        for down in range(TEXTURE_PERIOD):
            for across in range(TEXTURE_PERIOD):
                names.append(texture)
                levels.append(np.roll(cell, (down, across), axis=(0, 1)).ravel())
    return tuple(names), np.stack(levels)


def _recognise_texture(
    surface: Floats, inside: Mask, blob: Blob, base: Floats, colour: str | None
) -> str | None:
    """Name the texture of a surface by folding it onto one 8 x 8 cell of the pixel grid.

    Folding averages noise away, while a pattern of period eight stays; it is then compared to every texture
    at every shift. None means that the surface is neither even nor one of the known patterns.
    """
    contrast = np.asarray(second_tone(colour or "red"), dtype=np.float32) - base
    amount = np.clip((surface - base) @ contrast / np.float32(contrast @ contrast), -0.3, 1.3)
    rows, columns = np.nonzero(inside)
    place = (rows + blob.top) % TEXTURE_PERIOD * TEXTURE_PERIOD + (columns + blob.left) % TEXTURE_PERIOD
    weight = np.bincount(place, minlength=TEXTURE_PERIOD**2) / len(place)
    folded = np.bincount(place, amount, minlength=TEXTURE_PERIOD**2) / len(place)
    names, patterns = _shifted_patterns()
    mean = patterns @ weight
    variance = np.square(patterns) @ weight - mean**2
    covariance = patterns @ folded - mean * folded.sum()
    explained = np.where(covariance > 0, covariance**2 / np.maximum(variance, 1e-6), 0)
    best = int(np.argmax(explained))
    if covariance[best] / max(variance[best], 1e-6) >= _LEAST_CONTRAST:
        return names[best]
    return TEXTURES[0] if float(amount.std()) < _LARGEST_UNEVENNESS else None
