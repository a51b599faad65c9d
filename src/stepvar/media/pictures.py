"""Pictures read as 8-bit sRGB, whatever a file or a PIL picture holds."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from stepvar.media.sources import PathLike, check_size, compose_on_white, open_regular

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")
"""Formats that are read, by Pillow's names; others are rare, and one of them runs another program."""

_EXAMPLE = "a PNG or JPEG file"
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_FULL_SCALES = (255, 2**16 - 1, 2**31 - 1)
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")

Picture = Image.Image | PathLike


def read_picture(image: Picture, notes: list[str] | None = None) -> Image.Image:
    """A picture in mode RGB: upright, in sRGB, 8 bits a channel.

    Deeper pictures are scaled to 8 bits, transparent ones composed on white (with a warning in the log), and
    colour profiles converted. Of an animation, the first frame is read.

    Args:
        image: A file, or a PIL picture.
        notes: Gets a few words on everything that was changed.

    Raises:
        ValueError: When it is no regular file, cannot be read, or has an impossible size.
    """
    if isinstance(image, Image.Image):
        return _convert(image, "The picture", notes)
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"image is a {type(image).__name__}; give a PIL picture or the path of one.")
    name = f"'{image}'"
    with open_regular(image, "picture", _EXAMPLE) as file:
        # Pillow's readers raise errors of any type for damaged files.
        unreadable = ValueError(f"{name} is not a picture that can be read; give {_EXAMPLE}.")
        try:
            opened = Image.open(file, formats=_readable_formats())
        except Exception as error:
            raise unreadable from error
        with opened:
            check_size(*opened.size, name)
            try:
                opened.load()
            except Exception as error:
                raise unreadable from error
            return _convert(opened, name, notes)


def _readable_formats() -> list[str]:
    """Those of `FORMATS` that this Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def read_frames(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures that follow each other, each as `read_picture` reads it.

    Raises:
        ValueError: When there are none, they are no PIL pictures, or of different sizes.
    """
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError("video is no list of PIL pictures; give such a list, or the path of a video file.")
    frames = [
        _convert(picture, f"Frame {number} of the video") for number, picture in enumerate(pictures, start=1)
    ]
    for number, frame in enumerate(frames, start=1):
        if frame.size != frames[0].size:
            raise ValueError(
                "Frames of a video must have one size; the first is {}x{} pixels, number {} is {}x{}.".format(
                    *frames[0].size, number, *frame.size
                )
            )
    return frames


def _convert(picture: Image.Image, name: str, notes: list[str] | None = None) -> Image.Image:
    check_size(*picture.size, name)
    notes = [] if notes is None else notes
    profile = picture.info.get("icc_profile")
    converted = _upright(picture)
    if converted is not picture:
        notes.append("turned upright as its EXIF data says")
    if converted.mode in (*_SIXTEEN_BITS, "I", "F"):
        notes.append("scaled to 8 bits")
        return _to_eight_bits(converted, name).convert("RGB")
    if _may_be_transparent(converted):
        converted, composed = compose_on_white(converted)
        if composed:
            notes.append("composed on white where it is transparent")
            logger.warning("%s is transparent in places; it was composed on white.", name)
    return _to_srgb(converted, profile, name, notes)


def _may_be_transparent(picture: Image.Image) -> bool:
    if picture.mode == "P" and picture.palette is not None and picture.palette.mode == "RGBA":
        return True
    return picture.mode in _TRANSPARENT or "transparency" in picture.info


def _upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF data requires: phones store pictures sideways."""
    try:
        # Asked first because `exif_transpose` copies also what stands upright.
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(picture) if turned else picture
    except Exception:  # of any type for damaged EXIF data; the picture itself is complete
        return picture


def _to_eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """A grey picture of 16 bits, 32 bits or floating point, scaled to 8 bits.

    The full scale of 16 bits is 65535. Modes I and F do not state theirs: it is the smallest of 1 (for F),
    255, 65535 and 2^31 - 1 that the picture does not exceed. Integers read from a file have 16 bits or more.
    """
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite; give {_EXAMPLE}.")
    largest = float(values.max())
    scales: tuple[int, ...] = _FULL_SCALES
    if picture.mode in _SIXTEEN_BITS or (picture.mode == "I" and picture.format is not None):
        scales = _FULL_SCALES[1:]
    elif picture.mode == "F":
        scales = (1, *_FULL_SCALES)
    scale = next((scale for scale in scales if largest <= scale), largest)
    return Image.fromarray(np.rint(np.clip(values / scale, 0.0, 1.0) * 255.0).astype(np.uint8))


def _to_srgb(picture: Image.Image, profile: bytes | None, name: str, notes: list[str]) -> Image.Image:
    """A picture of 8 bits in mode RGB, converted from its colour profile."""
    if not profile or picture.mode not in ("RGB", "L", "CMYK"):
        return picture.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        title = ImageCms.getProfileDescription(source).strip()
        if "srgb" in title.lower():
            return picture.convert("RGB")
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning(
            "The colour profile of %s cannot be used (%s); its colours are read as sRGB.", name, error
        )
        return picture.convert("RGB")
    notes.append(f"converted to sRGB from its colour profile {title!r}")
    return picture.convert("RGB") if converted is None else converted
