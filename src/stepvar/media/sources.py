"""Opening of media files: regular files only, with one sentence for everything else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from PIL import Image

PathLike = str | os.PathLike[str]

_MOST_PIXELS = 2**27
"""Of a picture or a frame: 134 million, half a gigabyte in memory while it is converted."""

_MOST_ELONGATED = 100
"""Longer side / shorter side: to cover a canvas, a longer strip would be enlarged beyond all memory."""


def open_regular(path: PathLike, kind: str, example: str) -> BinaryIO:
    """Opens a file for reading; pipes and devices, which may block or never end, are refused.

    Args:
        kind: "picture" or "video", for messages.
        example: A file that would work, for messages.

    Raises:
        ValueError: When there is no such regular file, or it cannot be opened.
    """
    name = os.fspath(path)
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"There is no {kind} '{name}'.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"'{name}' cannot be opened ({reason}); give {example}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        what = "a folder" if Path(name).is_dir() else "no regular file"
        raise ValueError(f"'{name}' is {what}; give {example}.")
    return os.fdopen(descriptor, "rb")


def check_size(width: int, height: int, name: str) -> None:
    """Refuses sizes that no picture or video to begin with can have.

    Args:
        width, height: In pixels.
        name: Of the picture or video, for the message.

    Raises:
        ValueError: When a side is 0, or the picture is too large or too elongated.
    """
    size = f"{name} is {width}x{height} pixels"
    if width < 1 or height < 1:
        raise ValueError(f"{size}; both sides must be 1 or more.")
    if width * height > _MOST_PIXELS:
        raise ValueError(f"{size}, more than {_MOST_PIXELS // 10**6} million; scale it down.")
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise ValueError(
            f"{size}; one side may be {_MOST_ELONGATED} times the other at most: cut out the part you need."
        )


def compose_on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """A picture with transparency as RGB on white.

    Returns:
        The picture, and whether white shows anywhere.
    """
    # Pillow turns premultiplied grey into nothing else.
    layered = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    least, _ = layered.getchannel("A").getextrema()
    if least == 255:
        return layered.convert("RGB"), False
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB"), True
