"""Pictures on their way into VAREdit's square and back to their own size.

Source: `transform` of HiDream-ai/VAREdit, infer.py.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def fit_to_square(picture: Image.Image, side: int, fit: str = "pad") -> Tensor:
    """A picture as the model reads it.

    Args:
        picture: RGB.
        side: Pixels of the model's square.
        fit: "pad" puts the picture at the top left of a white square, as the official inference does;
            "crop" cuts the largest square from its middle, as the official training does.

    Returns:
        [3, side, side] float32 in -1..1.
    """
    width, height = picture.size
    if fit == "crop":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        square = picture.crop((left, top, left + short, top + short))
    else:
        square = Image.new("RGB", (max(width, height),) * 2, (255, 255, 255))
        square.paste(picture, (0, 0))
    resized = square.resize((side, side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1)
    unit = pixels.to(torch.float32) / 255.0
    return unit + unit - 1.0


def crop_result(result: Image.Image, size: Size, fit: str = "pad") -> Image.Image:
    """A result of the model at the size of the picture it was made from.

    Args:
        result: RGB square.
        size: Width and height of that picture.
        fit: As in `fit_to_square`; a cropped picture comes back as the square that was cut from it.
    """
    width, height = size
    side = min(width, height) if fit == "crop" else max(width, height)
    square = result.resize((side, side), Image.Resampling.LANCZOS)
    return square if fit == "crop" else square.crop((0, 0, width, height))
