"""Pictures on their way into an edit and back: mask, enlarged border, fit to a model's size, compositing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepvar.media.pictures import Picture, read_picture
from stepvar.media.sources import check_size

Box = Sequence[int] | Sequence[float]
"""Left, top, width and height: whole numbers are pixels, others shares of the picture's width and height."""

Mask = NDArray[np.bool_]

FEATHER_SHARE = 1 / 64
"""Of the shorter side: how wide the border is in which an edit is blended, where no width is given."""

FITS = ("crop", "pad")

_MASK_LEVEL = 128
"""Grey level from which on a mask's pixel may change."""

_LARGEST_BORDER = 2**14
_ASPECT_TOLERANCE = 0.01
"""Largest relative difference of the aspect ratios of a mask and its picture."""


@dataclass(frozen=True)
class Window:
    """The part of a canvas that a model sees: left, top, right, bottom in pixels; may exceed the canvas."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top


@dataclass
class Canvas:
    """A picture to edit.

    Attributes:
        picture: RGB, with its new border where it was enlarged.
        mask: bool [H, W], which pixels may change; None where all may.
        outside: Whether it was enlarged.
        notes: In a few words, what was changed on the way.
    """

    picture: Image.Image
    mask: Mask | None = None
    outside: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.picture.size


def open_canvas(
    image: Picture, mask: Picture | None = None, box: Box | None = None, outpaint: Sequence[int] | None = None
) -> Canvas:
    """Reads a picture and what may change in it.

    Args:
        image: A file or a PIL picture, read as `media.pictures.read_picture` does.
        mask: Of the picture's size, or of its shape: white may change.
        box: Instead of a mask, a rectangle that may change, in pixels or in shares of the sides.
        outpaint: Pixels of new border at the left, top, right and bottom, which may change too.

    Raises:
        ValueError: When a picture cannot be read, or the mask is empty, full or of another shape.
    """
    if mask is not None and box is not None:
        raise ValueError("mask and box were both given: give one of them.")
    notes: list[str] = []
    picture = read_picture(image, notes)
    canvas = Canvas(picture, notes=[f"the picture was {note}" for note in notes])
    if mask is not None:
        canvas.mask = _read_mask(mask, canvas)
    elif box is not None:
        canvas.mask = _box_mask(box, picture.size)
    if canvas.mask is not None:
        _refuse_empty_or_full(canvas.mask, "box" if box is not None else "mask")
    return canvas if outpaint is None else _enlarged(canvas, outpaint)


def _read_mask(mask: Picture, canvas: Canvas) -> Mask:
    read = read_picture(mask)
    if read.size != canvas.size:
        (width, height), (own_width, own_height) = canvas.size, read.size
        if abs(own_width * height / (own_height * width) - 1.0) > _ASPECT_TOLERANCE:
            raise ValueError(
                f"The mask is {own_width}x{own_height} pixels and the picture {width}x{height}: give a mask "
                "of the picture's size, or of its shape."
            )
        read = read.resize(canvas.size, Image.Resampling.BILINEAR)
        canvas.notes.append(f"the mask was resized from {own_width}x{own_height} to {width}x{height}")
    return np.asarray(read.convert("L")) >= _MASK_LEVEL


def _box_mask(box: Box, size: tuple[int, int]) -> Mask:
    numbers = isinstance(box, Sequence) and all(isinstance(entry, (int, float, np.number)) for entry in box)
    if not numbers or len(box) != 4:
        raise ValueError(f"box is {box!r}; give left, top, width and height.")
    if not all(isinstance(entry, (int, np.integer)) for entry in box):
        box = _box_of_shares(box, size)
    left, top, width, height = (int(entry) for entry in box)
    inside = width > 0 and height > 0 and left >= 0 and top >= 0
    if not inside or left + width > size[0] or top + height > size[1]:
        raise ValueError(
            f"The box {left},{top},{width},{height} (left, top, width, height) does not lie in the picture "
            f"of {size[0]}x{size[1]} pixels."
        )
    mask = np.zeros(size[::-1], dtype=np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def _box_of_shares(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in whole pixels, each edge at the nearest one."""
    left, top, width, height = (float(entry) for entry in box)
    edges = (left, top, left + width, top + height)
    if not (all(0.0 <= edge <= 1.0 + 1e-6 for edge in edges) and width > 0.0 and height > 0.0):
        raise ValueError(
            f"The box {left:g},{top:g},{width:g},{height:g} (left, top, width, height) does not lie in the "
            "picture: give whole pixels, or shares of the picture's sides such as 0.25,0.25,0.5,0.5."
        )
    first, upper, last, lower = (round(edge * side) for edge, side in zip(edges, (*size, *size), strict=True))
    return first, upper, last - first, lower - upper


def _refuse_empty_or_full(mask: Mask, name: str) -> None:
    if not mask.any():
        raise ValueError("The mask is empty: paint white what may change.")
    if mask.all():
        raise ValueError(
            f"The {name} covers the whole picture, so nothing of it would stay: make it smaller, or give a "
            "strength and no mask for a variation."
        )


def _enlarged(canvas: Canvas, outpaint: Sequence[int]) -> Canvas:
    """The canvas with a border that mirrors it, which may change."""
    if (
        not isinstance(outpaint, Sequence)
        or len(outpaint) != 4
        or not all(isinstance(entry, (int, np.integer)) for entry in outpaint)
    ):
        raise ValueError(f"outpaint is {outpaint!r}; give left, top, right and bottom in whole pixels.")
    left, top, right, bottom = (int(entry) for entry in outpaint)
    if min(left, top, right, bottom) < 0 or max(left, top, right, bottom) == 0:
        raise ValueError(
            "outpaint needs a border of 1 pixel or more on one side at least, and nowhere less than 0."
        )
    if max(left, top, right, bottom) > _LARGEST_BORDER:
        raise ValueError(
            f"outpaint asks for a border of more than {_LARGEST_BORDER} pixels: make it smaller."
        )
    width, height = canvas.size
    check_size(width + left + right, height + top + bottom, "The picture with its new border")
    borders = ((top, bottom), (left, right))
    pixels = np.pad(np.asarray(canvas.picture), (*borders, (0, 0)), mode="symmetric")
    inner = np.zeros((height, width), dtype=np.bool_) if canvas.mask is None else canvas.mask
    mask = np.pad(inner, borders, constant_values=True)
    notes = [
        *canvas.notes,
        f"the picture was enlarged from {width}x{height} to {pixels.shape[1]}x{pixels.shape[0]}",
    ]
    return Canvas(Image.fromarray(pixels), mask, True, notes)


def fit_window(canvas: Canvas, size: tuple[int, int], fit: str = "crop") -> Window:
    """Which part of a canvas becomes a model's picture.

    "crop" takes the largest part of the model's shape from the middle, as the models' own training does; it
    moves as far as needed to hold the mask. "pad" takes the whole canvas and what is missing around it.

    Args:
        size: Width and height of the model's picture.

    Raises:
        ValueError: When there is no such fit.
    """
    if fit not in FITS:
        raise ValueError(f"Unknown fit {fit!r}; known are {', '.join(FITS)}.")
    width, height = canvas.size
    wide, high = size
    # The canvas is wider than the model's picture where its width is what exceeds.
    exceeds = width * high > height * wide
    if exceeds == (fit == "crop"):
        own_width, own_height = max(round(height * wide / high), 1), height
    else:
        own_width, own_height = width, max(round(width * high / wide), 1)
    left, top = (width - own_width) // 2, (height - own_height) // 2
    if fit == "crop" and canvas.mask is not None:
        left = _moved(left, own_width, canvas.mask.any(axis=0))
        top = _moved(top, own_height, canvas.mask.any(axis=1))
    return Window(left, top, left + own_width, top + own_height)


def _moved(start: int, length: int, marked: Any) -> int:
    """Start of a stretch of an axis, moved as little as needed to hold all that is marked (bool)."""
    places = np.flatnonzero(marked)
    first, last = int(places[0]), int(places[-1]) + 1
    if last - first > length:
        middle = (first + last - length) // 2
        return min(max(middle, 0), len(marked) - length)
    return min(max(start, last - length), first)


def describe_fit(canvas: Canvas, window: Window, size: tuple[int, int]) -> list[str]:
    """What `fitted` does, in a few words; empty where the canvas has the model's size."""
    notes = []
    if window.size != canvas.size:
        kind = "cut to" if window.left >= 0 and window.top >= 0 else "filled up to"
        notes.append(
            f"the picture was {kind} {window.size[0]}x{window.size[1]} at {window.left},{window.top}"
        )
    if window.size != size:
        notes.append(f"the model sees {window.size[0]}x{window.size[1]} pixels as {size[0]}x{size[1]}")
    if canvas.mask is not None and not _holds(window, canvas.mask):
        notes.append("the mask reaches beyond what the model sees; only the part inside is edited")
    return notes


def _holds(window: Window, mask: Mask) -> bool:
    inner = mask[max(window.top, 0) : window.bottom, max(window.left, 0) : window.right]
    return bool(inner.sum() == mask.sum())


def fitted(canvas: Canvas, window: Window, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A canvas as a model reads it.

    Args:
        size: Width and height of the model's picture.

    Returns:
        Pixels [3, H, W] float32 in -1..1, and [H, W] float32 in 0..1: how much of each pixel may change.
    """
    width, height = canvas.size
    mask = np.ones((height, width), np.bool_) if canvas.mask is None else canvas.mask
    around = (
        (max(-window.top, 0), max(window.bottom - height, 0)),
        (max(-window.left, 0), max(window.right - width, 0)),
    )
    inside = (
        slice(max(window.top, 0), min(window.bottom, height)),
        slice(max(window.left, 0), min(window.right, width)),
    )
    pixels = np.pad(np.asarray(canvas.picture)[inside], (*around, (0, 0)), mode="symmetric")
    # What is filled up is cut away in the end, so the model may draw there what fits.
    coverage = np.pad(mask[inside], around, constant_values=True)
    picture = Image.fromarray(pixels)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1)
    shares = torch.from_numpy(coverage.astype(np.float32))[None, None]
    shares = torch.nn.functional.interpolate(shares, size=size[::-1], mode="area")
    return values.to(torch.float32) / 127.5 - 1.0, shares[0, 0]


def weights_of(mask: Mask, feather: int) -> NDArray[np.float32]:
    """How much of an edit shows at each pixel, float32 [H, W]: 0 outside of the mask, 1 deep inside.

    Within `feather` pixels inside of the mask's border the weight rises evenly. The edge of the picture is no
    border.
    """
    if feather == 0:
        return mask.astype(np.float32)
    from scipy import ndimage

    around = min(feather, max(mask.shape)) + 1
    distance = ndimage.distance_transform_edt(np.pad(mask, around, mode="edge"))
    distance = distance[around:-around, around:-around]
    return np.clip(distance / (feather + 1), 0.0, 1.0).astype(np.float32)


def default_feather(size: tuple[int, int]) -> int:
    """Width of the blended border for a picture of a width and height."""
    return round(FEATHER_SHARE * min(size))


def composite(canvas: Canvas, window: Window, drawn: Image.Image, feather: int | None = None) -> Image.Image:
    """A canvas with what was drawn where it may change.

    Pixels outside of the mask are the canvas's, bit for bit.

    Args:
        drawn: What the model drew of the window, of any size.
        feather: See `weights_of`; by default 1/64 of the shorter side.
    """
    resized = drawn if drawn.size == window.size else drawn.resize(window.size, Image.Resampling.LANCZOS)
    width, height = canvas.size
    whole = canvas.picture.copy()
    whole.paste(resized, (window.left, window.top))
    if canvas.mask is None:
        return whole
    seen = np.zeros((height, width), dtype=np.bool_)
    seen[max(window.top, 0) : window.bottom, max(window.left, 0) : window.right] = True
    weights = weights_of(canvas.mask & seen, default_feather(canvas.size) if feather is None else feather)
    below, above = (np.asarray(each).astype(np.float32) for each in (canvas.picture, whole))
    mixed = below + weights[..., None] * (above - below)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))
