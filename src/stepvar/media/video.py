"""Video files: reading frames with their times, writing MP4 and GIF.

MP4 files need PyAV (`pip install stepvar[video]`), which brings its own FFmpeg.
"""

from __future__ import annotations

import bisect
import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from stepvar.media.sources import PathLike, check_size, compose_on_white, open_regular

if TYPE_CHECKING:
    from av import VideoFrame
    from PIL.Image import Image

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,apng,mpegts,mpeg,ogg,asf,mxf,ivf,wav,mp3,flac"
"""FFmpeg's names of the containers that are read: files with streams, no playlists that name other files."""

_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
_EXAMPLE = "a video file such as an MP4"

_QUALITY = "17"
"""x264's constant rate factor: nearly without visible loss."""

_BT709 = 1
"""Number of BT.709 in ITU-T H.273: of colour primaries, of transfer and of matrix."""

_UNSPECIFIED = 2
_LIMITED_RANGE = 1
_LEAST_HD_HEIGHT, _LEAST_HD_WIDTH = 720, 1280
"""Untagged videos of this size are BT.709, smaller ones BT.601, as players assume."""

_LARGEST_DENOMINATOR = 1001
"""Of frame rates: 29.97 is 30000 / 1001."""

_TIME_TOLERANCE = 2e-3
"""In seconds: containers round times, some of them to milliseconds."""

_MOST_PIXELS_HELD = 2**30
"""Of all frames that are kept, four bytes each: five seconds of 3840x2160 pixels at 24 frames a second."""

_SHORTEST_GIF_DELAY = 2
"""In hundredths of a second; players slow down shorter ones."""


class VideoSupportError(ImportError, ValueError):
    """PyAV is not installed; the message names the command that installs it."""


@dataclass(frozen=True)
class Video:
    """Frames in memory.

    Attributes:
        frames: Pictures of one size.
        frames_per_second: Mean rate.
        times: In seconds, when each frame appears, the first one at 0, and when the last one ends: one more
            than there are frames. None for an even rate.
    """

    frames: Sequence[Image]
    frames_per_second: float
    times: Sequence[float] | None = None

    @property
    def is_even(self) -> bool:
        """Whether frames follow each other at the mean rate, none of them off by half a frame."""
        if self.times is None:
            return True
        pace = 1.0 / self.frames_per_second
        return all(abs(time - place * pace) < 0.5 * pace for place, time in enumerate(self.times))

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.frames) / self.frames_per_second if self.times is None else self.times[-1]

    def frame_at(self, seconds: float) -> int:
        """Index of the frame that shows at a time."""
        if self.times is None:
            index = math.floor(seconds * self.frames_per_second + 0.5)
        else:
            index = bisect.bisect_right(self.times, seconds + _TIME_TOLERANCE) - 1
        return min(max(index, 0), len(self.frames) - 1)


def read_video(path: PathLike, seconds: float | None = None, from_end: bool = False) -> Video:
    """Reads the frames of a video file, upright, as 8-bit RGB.

    Args:
        seconds: Length of the part that is read, so that a long file does not fill the memory; None is all.
        from_end: Read the last seconds instead of the first ones.

    Raises:
        ValueError: When there is no such regular file, it holds no pictures, or it is damaged.
        VideoSupportError: When PyAV is not installed.
    """
    av = _import_av()
    with open_regular(path, "video file", _EXAMPLE) as file:
        try:
            with av.open(file, options=_OPTIONS) as container:
                if not container.streams.video:
                    raise ValueError(f"'{path}' has sound but no pictures; give a video file.")
                stream = container.streams.video[0]
                codec = stream.codec_context
                # None where FFmpeg knows no such codec, as in damaged files.
                rate = float(stream.average_rate or stream.guessed_rate or 0) if codec else 0.0
                if codec:
                    check_size(codec.width, codec.height, f"'{path}'")
                timed = _with_times(container.decode(stream), rate) if rate > 0 else ()
                limited = _bounded(timed, f"'{path}'", seconds if from_end else None)
                chosen = _last(limited, seconds) if from_end else _first(limited, seconds)
                pictures = [_to_picture(av, each.frame) for each in chosen]
        except (av.error.FFmpegError, UnicodeError) as error:
            raise ValueError(
                f"'{path}' is not a video that can be read; fetch it again, or convert it to MP4."
            ) from error
    if not pictures:
        raise ValueError(f"'{path}' holds no frames that can be read; fetch it again.")
    start, end = chosen[0].start, chosen[-1].end
    mean = Fraction(len(chosen) / (end - start)).limit_denominator(_LARGEST_DENOMINATOR)
    if seconds is not None:
        start, end = (max(start, end - seconds), end) if from_end else (start, min(end, start + seconds))
    times = [max(each.start - start, 0.0) for each in chosen]
    # Less than a frame in a quarter of an hour has no such fraction.
    return Video(pictures, float(mean) or len(chosen) / (end - start), [*times, end - start])


class _TimedFrame(NamedTuple):
    """A frame, when it appears and when it is replaced, in seconds from the first one."""

    start: float
    end: float
    frame: VideoFrame


def _with_times(frames: Iterable[VideoFrame], rate: float) -> Iterator[_TimedFrame]:
    """Frames with their times; where a time is missing or goes back, it follows the mean rate."""
    origin: float | None = None
    start, current = 0.0, None
    for frame in frames:
        time = frame.time
        if origin is None:
            origin = time
        elapsed = None if time is None or origin is None else time - origin
        if current is not None:
            end = start + 1.0 / rate if elapsed is None or elapsed <= start else elapsed
            yield _TimedFrame(start, end, current)
            start = end
        current = frame
    if current is not None:
        duration = getattr(current, "duration", None)  # missing in older PyAV
        base = current.time_base
        length = float(duration * base) if duration and duration > 0 and base else 1.0 / rate
        yield _TimedFrame(start, start + length, current)


def _bounded(frames: Iterable[_TimedFrame], name: str, seconds: float | None) -> Iterator[_TimedFrame]:
    """Frames of one size, as long as the memory of those that are kept is bounded.

    A file of few bytes may hold any number of large pictures of one colour.

    Args:
        seconds: How far back frames are kept; None for all.

    Raises:
        ValueError: When they are too large together, or the size changes.
    """
    held: deque[tuple[float, int]] = deque()
    total = 0
    size: tuple[int, int] | None = None
    for each in frames:
        width, height = each.frame.width, each.frame.height
        check_size(width, height, name)
        size = size or (width, height)
        if (width, height) != size:
            raise ValueError(
                f"{name} changes from {size[0]}x{size[1]} to {width}x{height} pixels; convert it to one size."
            )
        held.append((each.end, width * height))
        total += width * height
        while seconds is not None and held[0][0] <= each.end - seconds + _TIME_TOLERANCE:
            total -= held.popleft()[1]
        if total > _MOST_PIXELS_HELD:
            raise ValueError(
                f"{name} holds more than {_MOST_PIXELS_HELD // 10**9} billion pixels in the part that is "
                "needed; scale it down, or cut out a shorter part."
            )
        yield each


def _first(frames: Iterable[_TimedFrame], seconds: float | None) -> list[_TimedFrame]:
    """Frames that appear in the first seconds."""
    chosen: list[_TimedFrame] = []
    for each in frames:
        if seconds is not None and each.start >= seconds - _TIME_TOLERANCE:
            break
        chosen.append(each)
    return chosen


def _last(frames: Iterable[_TimedFrame], seconds: float | None) -> list[_TimedFrame]:
    """Frames that show in the last seconds; no more are ever held."""
    chosen: deque[_TimedFrame] = deque()
    for each in frames:
        chosen.append(each)
        while seconds is not None and chosen[0].end <= each.end - seconds + _TIME_TOLERANCE:
            chosen.popleft()
    return list(chosen)


def _to_picture(av: Any, frame: VideoFrame) -> Image:
    """A frame as a picture, turned as the file requires: phones store videos sideways."""
    if any(component.is_alpha for component in frame.format.components):
        picture, _ = compose_on_white(frame.reformat(format="rgba").to_image())
    else:
        source = "ITU709" if _is_bt709(frame) else None
        # RGB has no such space, but older PyAV ignores the source's where the target's is the same or none.
        picture = frame.to_image(
            src_colorspace=source, dst_colorspace="ITU601" if source else None, interpolation=_accurate(av)
        )
    angle = getattr(frame, "rotation", 0)  # missing in older PyAV
    return picture.rotate(angle, expand=True) if angle else picture


def _is_bt709(frame: VideoFrame) -> bool:
    """Whether a frame says so, or says nothing and is large enough."""
    is_hd = frame.height >= _LEAST_HD_HEIGHT or frame.width >= _LEAST_HD_WIDTH
    colorspace = getattr(frame, "colorspace", _UNSPECIFIED)  # missing in older PyAV
    return colorspace == _BT709 or (colorspace == _UNSPECIFIED and is_hd)


def _accurate(av: Any) -> Any:
    """Interpolation whose colours are rounded; without these flags FFmpeg cuts off up to three levels."""
    kinds = av.video.reformatter.Interpolation
    if not hasattr(kinds, "ACCURATE_RND"):
        return "BILINEAR"  # an older PyAV without flags
    return kinds.BILINEAR | kinds.ACCURATE_RND | kinds.FULL_CHR_H_INT


def encode_mp4(video: Video, comment: str = "") -> bytes:
    """An MP4 file (H.264, BT.709) of a video.

    Args:
        comment: Stored in the file's metadata.

    Raises:
        ValueError: When the video has no frames, frames of several or odd sizes, or no positive rate.
        VideoSupportError: When PyAV is not installed.
    """
    av = _import_av()
    width, height = _check_frames(video)
    if width % 2 or height % 2:
        raise ValueError(
            f"An MP4 file needs even sides, and the frames are {width}x{height} pixels: "
            "write a GIF or a folder of frames, or change the size."
        )
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        container.metadata["comment"] = comment
        rate = Fraction(video.frames_per_second).limit_denominator(_LARGEST_DENOMINATOR)
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"  # the one format that every player reads
        stream.options = {"crf": _QUALITY, "preset": "medium"}
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        for picture in video.frames:
            container.mux(stream.encode(_to_bt709(av, picture)))
        container.mux(stream.encode())
    return buffer.getvalue()


def _to_bt709(av: Any, picture: Image) -> VideoFrame:
    """A frame in limited range, which is FFmpeg's choice where none is named."""
    frame = av.VideoFrame.from_image(picture.convert("RGB"))
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", interpolation=_accurate(av))


def encode_gif(video: Video, comment: str = "") -> bytes:
    """An animated GIF of a video, which repeats without end; colours are reduced to 256 a frame.

    Raises:
        ValueError: As for `encode_mp4`, but odd sizes are fine.
    """
    _check_frames(video)
    buffer = io.BytesIO()
    first, *others = video.frames
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=_gif_delays(len(video.frames), video.frames_per_second),
        loop=0,
        comment=comment.encode("utf-8")[:65535],
    )
    return buffer.getvalue()


def _gif_delays(count: int, rate: float) -> list[int]:
    """How long each frame shows, in milliseconds.

    A GIF counts hundredths of a second. Delays that differ by one keep the mean rate, also of 7.5 frames a
    second.
    """
    ends = [round(100 * number / rate) for number in range(count + 1)]
    return [10 * max(end - start, _SHORTEST_GIF_DELAY) for start, end in pairwise(ends)]


def _check_frames(video: Video) -> tuple[int, int]:
    """Width and height of a video that can be written."""
    if not video.frames:
        raise ValueError("The video has no frames; give at least one.")
    if not (math.isfinite(video.frames_per_second) and video.frames_per_second > 0):
        raise ValueError(
            f"The video has {video.frames_per_second:g} frames per second; give a positive number."
        )
    sizes = {picture.size for picture in video.frames}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise ValueError(f"The frames of a video must have one size; these have {listed} pixels.")
    width, height = sizes.pop()
    check_size(width, height, "The video")
    return width, height


def encode_video(video: Video, suffix: str, comment: str = "") -> bytes:
    """A video file of the format that a file name's ending names, ".mp4" or ".gif"."""
    return encode_gif(video, comment) if suffix.lower() == ".gif" else encode_mp4(video, comment)


def require_writer(suffix: str) -> None:
    """Refuses an ending that cannot be written here.

    Raises:
        ValueError: When it is no video format.
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
