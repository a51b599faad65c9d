"""Before, mask and after side by side, one row an edit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

Row = tuple[Image.Image, Image.Image | None, Image.Image]
"""Before, mask (None for all of it) and after."""

_GAP = 8
_TINT = np.array([255.0, 0.0, 255.0], dtype=np.float32)
_TINT_SHARE = 0.5


def tinted(picture: Image.Image, mask: Image.Image | None) -> Image.Image:
    """A picture with its masked part tinted."""
    pixels = np.asarray(picture).astype(np.float32)
    marked = np.ones(pixels.shape[:2], np.float32) if mask is None else np.asarray(mask) / np.float32(255.0)
    weight = (_TINT_SHARE * marked)[..., None]
    return Image.fromarray(np.rint(pixels + weight * (_TINT - pixels)).astype(np.uint8))


def edit_sheet(rows: Sequence[Row]) -> Image.Image:
    """A picture of all rows: before, before with its mask tinted, after.

    Pictures are shown at the size of the first one.
    """
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (3 * width + 2 * _GAP, len(rows) * (height + _GAP) - _GAP), (255, 255, 255))
    for line, (before, mask, after) in enumerate(rows):
        for column, picture in enumerate((before, tinted(before, mask), after)):
            shown = picture if picture.size == (width, height) else picture.resize((width, height))
            sheet.paste(shown, (column * (width + _GAP), line * (height + _GAP)))
    return sheet
