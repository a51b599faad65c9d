"""Pixels of pictures and videos: bytes, values in -1..1, resizing as the official code does it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_bytes(frames: Tensor, smooth_start: bool = True) -> Tensor:
    """Decoded frames [3, F, H, W] in -1..1 as bytes [F, H, W, 3] on the CPU, cut off rather than rounded.

    Args:
        smooth_start: Replace the first frame by the second, as the official code does: the first frame is
            decoded with nothing before it and flickers.
    """
    shown = ((frames.float() + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0
    shown = shown.to(torch.uint8).permute(1, 2, 3, 0).cpu()
    if smooth_start and len(shown) > 1:
        shown[0] = shown[1]
    return shown


def collect(chunks: Iterable[Tensor]) -> Tensor:
    """Chunks of decoded frames [1, 3, n, H, W] as bytes [F, H, W, 3]: only bytes are ever held together."""
    parts = [to_bytes(chunk[0], smooth_start=False) for chunk in chunks]
    shown = torch.cat(parts)
    if len(shown) > 1:
        shown[0] = shown[1]
    return shown


def fit(picture: Image.Image, height: int, width: int) -> tuple[Image.Image, bool]:
    """Resizes a picture so that it covers height x width and cuts out the middle, as officially.

    Returns:
        The picture, and whether anything was cut off.
    """
    picture = picture.convert("RGB")
    given_width, given_height = picture.size
    if given_width / given_height <= width / height:
        scaled = (width, int(width / (given_width / given_height)))
    else:
        scaled = (int((given_width / given_height) * height), height)
    # Rounding down may leave the longer side a pixel short of what it must cover.
    scaled = (max(scaled[0], width), max(scaled[1], height))
    resized = picture.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    lost = max(scaled[0] - width, scaled[1] - height)
    return resized.crop((left, top, left + width, top + height)), lost > 0.01 * max(scaled)


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as [1, 3, F, H, W] in -1..1."""
    frames = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255.0 * 2.0 - 1.0


def spread_frames(count: int, frames_per_second: float, seconds: float, wanted: int) -> list[int]:
    """Which frames of a video stand for its first seconds, evenly spread, as officially.

    Raises:
        ValueError: When the video is shorter.
    """
    covered = math.ceil(seconds * frames_per_second)
    if covered > count:
        raise ValueError(
            f"The video lasts {count / frames_per_second:.1f} seconds, but {seconds:g} are needed: "
            "give a longer one, or its last frame as a picture."
        )
    return [int(place) for place in np.linspace(0, covered - 1, wanted)]
