"""Video files: reading frames, writing MP4, GIF and folders of pictures.

MP4 files need PyAV (`pip install stepvar[video]`), which brings its own FFmpeg.
"""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import VideoFrame
    from PIL.Image import Image

_QUALITY = "17"
"""x264's constant rate factor: nearly without visible loss."""


class VideoSupportError(ImportError, ValueError):
    """PyAV is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Video:
    """Frames in memory.

    Attributes:
        frames: Pictures of one size.
        frames_per_second: How fast they follow each other.
    """

    frames: Sequence[Image]
    frames_per_second: float


def read_video(path: str | os.PathLike[str], seconds: float | None = None, from_end: bool = False) -> Video:
    """Reads the pictures of a video file, upright as players show them.

    Args:
        seconds: How much is read, so that a long file does not fill the memory; None is all of it.
        from_end: Read the last seconds instead of the first ones.

    Raises:
        ValueError: When there is no such file, it holds no pictures, or it is damaged.
        VideoSupportError: When PyAV is not installed.
    """
    av = _import_av()
    if not Path(path).is_file():
        raise ValueError(f"There is no video file '{path}'.")
    try:
        with av.open(str(path)) as container:
            if container.format.name == "tty":  # FFmpeg would draw the letters of a text file
                raise ValueError(f"'{path}' is not a video that can be read; give a video file.")
            if not container.streams.video:
                raise ValueError(f"'{path}' has sound but no pictures; give a video file.")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            count = None if seconds is None else math.ceil(seconds * rate)
            frames = _pictures(container.decode(stream), count, from_end) if rate else []
    except (av.error.FFmpegError, UnicodeError) as error:
        raise ValueError(
            f"'{path}' is not a video that can be read; fetch it again, or convert it to MP4."
        ) from error
    if not frames:
        raise ValueError(f"'{path}' holds no frames that can be read; fetch it again.")
    return Video(frames, rate)


def _pictures(frames: Iterable[VideoFrame], count: int | None, from_end: bool) -> list[Image]:
    """The first or last `count` frames as pictures; only these are ever held."""
    chosen = deque(frames, maxlen=count) if from_end else islice(frames, count)
    return [_upright(frame) for frame in chosen]


def _upright(frame: VideoFrame) -> Image:
    """A frame as a picture, turned as the file says: phones store videos sideways."""
    picture = frame.to_image()
    angle = getattr(frame, "rotation", 0)  # older PyAV does not tell
    return picture.rotate(angle, expand=True) if angle else picture


def encode_mp4(video: Video, comment: str = "") -> bytes:
    """An MP4 file (H.264) of a video.

    Args:
        comment: Kept in the file's metadata.

    Raises:
        VideoSupportError: When PyAV is not installed.
    """
    av = _import_av()
    buffer = io.BytesIO()
    width, height = video.frames[0].size
    with av.open(buffer, mode="w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=round(video.frames_per_second))
        stream.width, stream.height = width, height
        # Every player reads this one; it needs even sides, which multiples of 16 are.
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": _QUALITY, "preset": "medium"}
        for picture in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_gif(video: Video, comment: str = "") -> bytes:
    """An animated GIF of a video, which repeats for ever; colours are reduced to 256 a frame."""
    buffer = io.BytesIO()
    first, *others = video.frames
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=others,
        # A GIF counts hundredths of a second.
        duration=10 * max(round(100 / video.frames_per_second), 2),
        loop=0,
        comment=comment.encode("utf-8")[:65535],
    )
    return buffer.getvalue()


def encode_video(video: Video, suffix: str, comment: str = "") -> bytes:
    """A file of a video, of the kind that its ending says, ".mp4" or ".gif"."""
    return encode_gif(video, comment) if suffix.lower() == ".gif" else encode_mp4(video, comment)


def require_writer(suffix: str) -> None:
    """Refuses an ending that cannot be written here.

    Raises:
        ValueError: When no video ends so.
        VideoSupportError: When PyAV, which MP4 needs, is not installed.
    """
    if suffix not in (".mp4", ".gif"):
        raise ValueError(f"Unknown video format {suffix[1:]!r}; known are mp4, gif.")
    if suffix == ".mp4":
        _import_av()


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise VideoSupportError(
            "Video files need PyAV, which is not installed: pip install 'stepvar[video]', or write a GIF or "
            "a folder of frames."
        ) from error
    return av
