"""Pictures and videos that are answered by URL: the last ones, in memory."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict

from starlette.responses import Response

from stepvar.serving.errors import RequestError

_MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
}


class PictureStore:
    """A bounded store of files; all methods may be called from any thread.

    Args:
        limit: How many are kept; the oldest goes first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def add(self, content: bytes, ending: str) -> str:
        """Keeps a file; returns the name that it is served under.

        Args:
            ending: Of the name: png, jpeg, webp, gif or mp4.
        """
        name = f"{secrets.token_urlsafe(16)}.{ending}"
        self._files[name] = (_MEDIA_TYPES[ending], content)
        while len(self._files) > self._limit:
            self._files.popitem(last=False)
        return name

    def get(self, name: str) -> tuple[str, bytes]:
        """Media type and content.

        Raises:
            RequestError: When there is no such file, or no more.
        """
        if name not in self._files:
            raise RequestError(
                404, "There is no such picture; only the last ones are kept.", code="not_found"
            )
        return self._files[name]


def file_response(media_type: str, content: bytes, wanted: str | None) -> Response:
    """A file as an answer, or the part of it that is asked for: players of videos ask for parts.

    Args:
        wanted: The request's Range header; one that is no single range of bytes is ignored, as HTTP allows.
    """
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=31536000, immutable"}
    match = re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{0,18})", wanted or "", re.ASCII)
    if match is None:
        return Response(content, media_type=media_type, headers=headers)
    size, first = len(content), int(match[1])
    last = min(int(match[2]) if match[2] else size - 1, size - 1)
    if first > last:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    part = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
    return Response(content[first : last + 1], 206, media_type=media_type, headers=part)
