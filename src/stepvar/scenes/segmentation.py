"""Separation of objects from the background, from pixels only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.backgrounds import background
from stepvar.scenes.palette import BACKGROUND_TONES
from stepvar.scenes.spec import BACKGROUNDS, RADIUS_FRACTIONS

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

DIFFERENT: float = 45.0
"""A pixel this far (RGB levels) from every tone of the background belongs to an object; cream on sand, the
closest pair to distinguish, is 67 levels away."""

# A pixel so many levels darker than the darkest tone belongs to an outline; noise raises the limit.
_LEAST_DARKNESS = 15.0
_NOISE_FACTOR = 0.85
# The palette is moved by at most so many levels towards what the picture shows.
_LARGEST_SHIFT = 40.0
_FRAME_WIDTH = 4
# Gaps up to twice this many pixels are bridged; two objects are further apart.
_BRIDGE = 2
# Soft edges around objects do not belong to the background.
_EDGE_WIDTH = 2
_LEAST_BACKGROUND = 0.1
_LARGEST_REMAINDER = 0.3
# Blobs below this share of the area of the smallest object are specks, not objects.
_SPECK_SHARE = 0.4
# One unit of difference between backgrounds: levels of RGB, and logarithm of a ratio.
_COLOUR_SCALE = 20.0
_ANISOTROPY_SCALE = 0.9
_LEAST_VARIATION = 1.5
_REFERENCE_SIDE = 256
_THIRDS = np.full(3, 1 / 3, dtype=np.float32)


@dataclass(frozen=True)
class Blob:
    """One connected piece of foreground, holes filled.

    `mask` covers the bounding box only; `left`, `top`, `right`, `bottom` are pixels, the last two exclusive.
    """

    left: int
    top: int
    right: int
    bottom: int
    mask: Mask


@dataclass(frozen=True)
class Segmentation:
    """Background and foreground of a picture.

    `background` is None if it looks like none of the known ones; `distance` is how far each pixel is from the
    colours of the background (RGB levels, float32 [height, width]); `blobs` are the pieces of the rest that
    are large enough to be objects.
    """

    background: str | None
    distance: Floats
    blobs: tuple[Blob, ...]


def segment(picture: Floats) -> Segmentation:
    """Separate the objects from the background.

    Args:
        picture: float32 [height, width, 3], levels from 0 to 255.
    """
    name = _nearest_background(np.median(_frame(picture), axis=0), None)
    distance, solid = _split(picture, name)
    outside = ~_dilate(solid, _EDGE_WIDTH)
    if np.mean(outside) < _LEAST_BACKGROUND:
        return Segmentation(None, distance, _blobs(solid))
    better = _nearest_background(picture[outside].mean(axis=0), _anisotropy(picture, outside))
    if better != name:
        name = better
        distance, solid = _split(picture, name)
    looks_known = float(np.mean(distance[~solid] > DIFFERENT)) < _LARGEST_REMAINDER
    return Segmentation(name if looks_known else None, distance, _blobs(solid))


def grey(pixels: Floats) -> Floats:
    """Return the mean of the three channels, float32 [...] from float32 [..., 3]."""
    # A product with a constant vector: reducing an axis of length three is several times slower.
    return pixels @ _THIRDS


def _split(picture: Floats, name: str) -> tuple[Floats, Mask]:
    """Return the distance of each pixel to a background, and the solid silhouettes of the objects on it."""
    frame = _frame(picture)
    # A generator need not hit the colours exactly, so the palette is shifted to what the frame shows.
    shift = np.median(frame - _nearest_tones(frame, name), axis=0)
    shift = np.clip(shift, -_LARGEST_SHIFT, _LARGEST_SHIFT).astype(np.float32)
    noise = float(np.quantile(_distance_to_tones(frame - shift, name), 0.95))
    limit = min(max(_NOISE_FACTOR * noise, _LEAST_DARKNESS), DIFFERENT)
    distance = _distance_to_tones(picture - shift, name)
    # Colours bleed around objects, darkness does not: a low limit for the outline, a high one for all else.
    darkness = float((_tones(name)[0] + shift).mean()) - grey(picture)
    marked = (distance > DIFFERENT) | (darkness > limit)
    # A soft outline may have gaps, and grey parts of an object pass for stone: close both.
    closed = _erode(_dilate(marked, _BRIDGE), _BRIDGE)
    return distance, _dilate(_erode(_fill_holes(closed), 1), 1)


def _frame(picture: Floats) -> Floats:
    """Return the pixels along the border, where objects never reach, float32 [pixels, 3]."""
    width = _FRAME_WIDTH
    parts = (picture[:width], picture[-width:], picture[width:-width, :width], picture[width:-width, -width:])
    return np.concatenate([part.reshape(-1, 3) for part in parts])


@cache
def _reference(name: str) -> tuple[Floats, float]:
    """Return the mean colour and the anisotropy of a background as it is rendered."""
    picture = background(name, _REFERENCE_SIDE, np.random.default_rng(0)).astype(np.float32)
    everywhere = np.ones(picture.shape[:2], dtype=bool)
    return picture.mean(axis=(0, 1)), _anisotropy(picture, everywhere) or 0.0


def _nearest_background(colour: Floats, anisotropy: float | None) -> str:
    """Return the background closest in mean colour, float32 [3], and, if known, in anisotropy."""

    def difference(name: str) -> float:
        expected_colour, expected_anisotropy = _reference(name)
        squared = float(np.square((colour - expected_colour) / _COLOUR_SCALE).sum())
        if anisotropy is not None:
            squared += ((anisotropy - expected_anisotropy) / _ANISOTROPY_SCALE) ** 2
        return squared

    return min(BACKGROUNDS, key=difference)


def _anisotropy(picture: Floats, where: Mask) -> float | None:
    """Return the logarithm of vertical over horizontal variation; None if there is hardly any variation.

    Waves vary downwards, blades of grass across, grains of sand alike in both directions.
    """
    level = grey(picture)
    across = np.abs(level[:, 2:] - level[:, :-2])[where[:, 2:] & where[:, :-2]]
    down = np.abs(level[2:] - level[:-2])[where[2:] & where[:-2]]
    if min(len(across), len(down)) == 0 or across.mean() + down.mean() < 2 * _LEAST_VARIATION:
        return None
    return float(np.log((down.mean() + 0.1) / (across.mean() + 0.1)))


@cache
def _tones(name: str) -> Floats:
    return np.asarray(BACKGROUND_TONES[name], dtype=np.float32)


def _nearest_tones(pixels: Floats, name: str) -> Floats:
    """Return, for each pixel, the closest colour between the neighbouring tones of a background."""
    dark, middle, light = _tones(name)
    candidates = []
    for end in (dark, light):
        direction = end - middle
        along = np.clip((pixels - middle) @ (direction / (direction @ direction)), 0, 1)
        candidates.append(middle + along[..., None] * direction)
    darker, lighter = candidates
    is_darker = np.square(pixels - darker).sum(axis=-1) < np.square(pixels - lighter).sum(axis=-1)
    return np.where(is_darker[..., None], darker, lighter)


def _distance_to_tones(pixels: Floats, name: str) -> Floats:
    """Return the RGB distance of each pixel to the tones of a background, float32 [...]."""
    dark, middle, light = _tones(name)
    offset = pixels - middle
    squared = np.einsum("...c,...c->...", offset, offset)
    # |offset - along * direction|^2 for both halves, without building the vectors.
    gains = []
    for end in (dark, light):
        direction = end - middle
        length = direction @ direction
        along = offset @ (direction / length)
        nearest = np.clip(along, 0, 1)
        gains.append(nearest * (2 * along - nearest) * length)
    return np.sqrt(np.maximum(squared - np.maximum(*gains), 0))


def _fill_holes(mask: Mask) -> Mask:
    """Add to a mask the pixels it encloses: everything that is not connected to the border."""
    from scipy import ndimage

    labels, _ = ndimage.label(~mask)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    outside = np.zeros(int(labels.max()) + 1, dtype=bool)
    outside[border] = True
    outside[0] = False
    return ~outside[labels]


def _dilate(mask: Mask, reach: int) -> Mask:
    """Grow a mask by `reach` pixels in every direction, diagonals included."""
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, reach + 1):
            ahead, behind = (
                (slice(step, None), slice(None, -step))
                if axis == 0
                else (
                    (slice(None), slice(step, None)),
                    (slice(None), slice(None, -step)),
                )
            )
            grown[ahead] |= mask[behind]
            grown[behind] |= mask[ahead]
        mask = grown
    return mask


def _erode(mask: Mask, reach: int) -> Mask:
    """Shrink a mask by `reach` pixels; beyond the border of the picture it counts as covered."""
    return ~_dilate(~mask, reach)


def _blobs(solid: Mask) -> tuple[Blob, ...]:
    """Split a mask into connected pieces and drop the specks."""
    from scipy import ndimage

    labels, count = ndimage.label(solid)
    # A star covers the least of its bounding square: about 1.45 times the square of its radius.
    smallest = _SPECK_SHARE * 1.45 * (RADIUS_FRACTIONS["small"] * solid.shape[1]) ** 2
    blobs = []
    for label, (rows, columns) in zip(range(1, count + 1), ndimage.find_objects(labels), strict=True):
        mask = labels[rows, columns] == label
        if mask.sum() >= smallest:
            blobs.append(Blob(columns.start, rows.start, columns.stop, rows.stop, mask))
    return tuple(blobs)
