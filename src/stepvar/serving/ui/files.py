"""Files that the page shows and offers: pictures, videos and comparisons, with their settings inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from stepvar.evaluation.provenance import picture_settings
from stepvar.media.encoding import encode_png
from stepvar.media.names import slug
from stepvar.media.video import Video, VideoSupportError, encode_video
from stepvar.serving.drawing import Drawn
from stepvar.serving.pictures import PictureStore
from stepvar.serving.ui.form import Ask

_PREVIEW_SIDE = 512
_PREVIEW_QUALITY = 80


@dataclass(frozen=True)
class PageFile:
    """A file that the server keeps.

    Attributes:
        place: Where it is, from the page's own address.
        name: What it is called when it is saved.
        kind: Its ending.
    """

    place: str
    name: str
    kind: str


def keep_drawn(store: PictureStore, drawn: Drawn, ask: Ask, plan: str) -> PageFile:
    """Keeps a picture as PNG, a video as MP4, or as GIF where PyAV is not installed.

    Args:
        plan: Of this picture, in a word, for the file's name.
    """
    settings = json.dumps(picture_settings(drawn.report, ask.prompt, ask.seed, 0, 1))
    if len(drawn.frames) <= 1:
        kind, content = "png", encode_png(drawn.image, {"stepvar": settings})
    else:
        kind, content = _encode_video(Video(drawn.frames, drawn.frames_per_second), settings)
    return _keep(store, content, kind, f"{slug(ask.prompt)}-{ask.seed}-{slug(plan)}")


def keep_picture(store: PictureStore, image: Image.Image, settings: Mapping[str, Any], name: str) -> PageFile:
    """Keeps any picture as PNG with settings inside."""
    return _keep(store, encode_png(image, {"stepvar": json.dumps(settings)}), "png", name)


def _keep(store: PictureStore, content: bytes, kind: str, name: str) -> PageFile:
    return PageFile(f"v1/files/{store.add(content, kind)}", f"{name}.{kind}", kind)


def _encode_video(video: Video, settings: str) -> tuple[str, bytes]:
    try:
        return "mp4", encode_video(video, ".mp4", settings)
    except (VideoSupportError, ValueError):  # no PyAV, or odd sides
        return "gif", encode_video(video, ".gif", settings)


def inline(image: Image.Image) -> str:
    """A small copy of a picture as an address that holds it: for previews, which nobody keeps."""
    small = image.copy()
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_PREVIEW_QUALITY, method=0)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
