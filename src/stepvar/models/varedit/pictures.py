"""Pictures on their way onto VAREdit's canvas and back to their own size.

Source: `transform` and `crop_op` of HiDream-ai/VAREdit, infer.py, which knows square canvases only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.media.pictures import Picture, read_picture
from stepvar.media.sources import check_size

Size = tuple[int, int]
"""Width and height in pixels."""

FITS = ("pad", "crop")
"""How a picture of another shape comes onto the canvas."""


def read_sources(image: Picture | Sequence[Picture] | None, prompts: int) -> list[Image.Image]:
    """The pictures to edit, one a prompt, upright, in sRGB, 8 bits a channel.

    Args:
        image: One picture or file for all prompts, or one a prompt.
        prompts: How many prompts there are.

    Raises:
        ValueError: When there is none, one cannot be read, or the numbers do not fit.
    """
    if image is None:
        raise ValueError(
            "VAREdit edits a picture: give one by image= (--image FILE), and say what to change."
        )
    given: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]
    if len(given) not in (1, prompts):
        raise ValueError(f"{prompts} prompts need one image, or {prompts}; got {len(given)}.")
    read = [read_picture(entry) for entry in given]
    return read if len(read) == prompts else read * prompts


def check_fit(fit: str, sources: Sequence[Image.Image], canvas: Size) -> None:
    """Refuses an unknown fit, and pictures so long that their canvas would be enormous.

    Args:
        fit: How pictures come onto the canvas.
        sources: The pictures.
        canvas: Width and height that the model draws.

    Raises:
        ValueError: Saying what would work.
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; known are {', '.join(FITS)}.")
    for picture in sources:
        width, height = picture.size
        name = f"The picture of {width}x{height} pixels, padded to the model's shape,"
        check_size(*placed_size(picture.size, canvas, fit), name)


def placed_size(size: Size, canvas: Size, fit: str) -> Size:
    """The region, in the picture's own pixels, that stands for the whole canvas.

    Args:
        size: Of the picture.
        canvas: Width and height that the model draws.
        fit: "pad" gives the smallest region of the canvas' shape around the picture, "crop" the largest
            inside it.
    """
    (width, height), (across, down) = size, canvas
    if fit == "crop":
        return max(min(width, height * across // down), 1), max(min(height, width * down // across), 1)
    return max(width, -(-height * across // down)), max(height, -(-width * down // across))


def fit_to_canvas(picture: Image.Image, canvas: Size, fit: str = "pad") -> Tensor:
    """A picture as the model reads it.

    Args:
        picture: RGB.
        canvas: Width and height that the model draws.
        fit: "pad" puts the picture at the top left of a white canvas, as the official inference does; "crop"
            cuts the largest piece of the canvas' shape from its middle, as the official training does.

    Returns:
        [3, height, width] float32 in -1..1.
    """
    width, height = placed_size(picture.size, canvas, fit)
    if fit == "crop":
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        placed = picture.crop((left, top, left + width, top + height))
    else:
        placed = Image.new("RGB", (width, height), (255, 255, 255))
        placed.paste(picture, (0, 0))
    resized = placed.resize(canvas, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1)
    unit = pixels.to(torch.float32) / 255.0
    return unit + unit - 1.0


def crop_result(result: Image.Image, size: Size, fit: str = "pad") -> Image.Image:
    """A result of the model at the size of the picture it was made from.

    Args:
        result: RGB, the whole canvas.
        size: Width and height of that picture.
        fit: As in `fit_to_canvas`; a cropped picture comes back as the piece that was cut from it.
    """
    whole = result.resize(placed_size(size, result.size, fit), Image.Resampling.LANCZOS)
    return whole if fit == "crop" else whole.crop((0, 0, *size))
