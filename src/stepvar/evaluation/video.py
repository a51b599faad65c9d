"""Videos for benchmarks: which pipelines draw them, and their files."""

from __future__ import annotations

import importlib.util
import inspect
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def require_video(pipeline: Any, benchmark: str) -> None:
    """Refuses a pipeline that draws pictures.

    Raises:
        ValueError: When the pipeline takes no length in seconds.
    """
    if "seconds" not in inspect.signature(type(pipeline).__call__).parameters:
        raise ValueError(
            f"{benchmark} scores videos, but {type(pipeline).__name__} draws pictures: name a video model "
            "with --model."
        )


def require_encoder(suffix: str) -> None:
    """Refuses a file type that cannot be written here.

    Raises:
        ValueError: Naming what is missing.
    """
    if suffix not in (".mp4", ".gif"):
        raise ValueError(f"Unknown video format {suffix[1:]!r}; known are mp4, gif.")
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError("Videos as .mp4 need imageio with ffmpeg: pip install 'imageio[ffmpeg]'.")


def encode_video(frames: Sequence[Image.Image], frames_per_second: int, suffix: str) -> bytes:
    """A video as the bytes of an .mp4 file.

    Raises:
        ValueError: When the encoder is missing.
    """
    require_encoder(suffix)
    if suffix == ".gif":
        buffer = io.BytesIO()
        first, *others = frames
        duration = round(1000 / frames_per_second)
        first.save(buffer, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)
        return buffer.getvalue()
    from diffusers.utils import export_to_video

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"video{suffix}"
        export_to_video(list(frames), str(file), fps=frames_per_second)
        return file.read_bytes()
