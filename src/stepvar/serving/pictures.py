"""Pictures that are answered by URL: the last ones, in memory."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from stepvar.serving.errors import RequestError


class PictureStore:
    """A bounded store of picture files.

    Args:
        limit: How many are kept; the oldest goes first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def add(self, content: bytes, output_format: str) -> str:
        """Keeps a file; returns the name that it is served under."""
        name = f"{secrets.token_urlsafe(16)}.{output_format}"
        self._files[name] = (f"image/{output_format}", content)
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
