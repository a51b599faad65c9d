"""PNG encoding, and encoding in background threads while the next pictures are drawn."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

Content = TypeVar("Content")


def encode_png(picture: Image, texts: Mapping[str, str] | None = None) -> bytes:
    """A PNG file of a picture.

    Args:
        texts: Text chunks by keyword.
    """
    metadata = PngInfo()
    for keyword, text in (texts or {}).items():
        metadata.add_text(keyword, text)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=metadata)
    return buffer.getvalue()


class BackgroundEncoder(Generic[Content]):
    """Encodes files in background threads and commits them in order on the caller's thread.

    A 1024 x 1024 PNG takes a quarter of a second to compress, without Python's lock, so that the next
    picture is drawn meanwhile. `add` waits only when too many files are pending. An error of an encoding or
    of a commit is raised at its turn: files before it are committed, those after it are dropped. Leaving the
    block commits what is pending, also when another exception, such as Ctrl-C, ends it.

    Args:
        threads: That encode.
        pending: Most files that are encoded but not committed, which bounds the memory.
    """

    def __init__(self, threads: int = 2, pending: int = 4) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stepvar-encoder")
        self._most = pending
        self._waiting: deque[tuple[Future[Content], Callable[[Content], None]]] = deque()

    def __enter__(self) -> BackgroundEncoder[Content]:
        return self

    def add(self, encode: Callable[[], Content], commit: Callable[[Content], None]) -> None:
        """Starts an encoding, and commits files whose turn has come.

        Args:
            encode: Makes a file's content; runs in another thread.
            commit: Takes the content; runs on this thread, after the commits of all files added before.
        """
        self._waiting.append((self._pool.submit(encode), commit))
        while self._waiting and (self._waiting[0][0].done() or len(self._waiting) > self._most):
            self._commit_first()

    def finish(self) -> None:
        """Waits for all encodings and commits them."""
        while self._waiting:
            self._commit_first()

    def _commit_first(self) -> None:
        encoding, commit = self._waiting.popleft()
        try:
            commit(encoding.result())
        except BaseException:
            self._waiting.clear()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish()
        finally:
            self._pool.shutdown(cancel_futures=True)
