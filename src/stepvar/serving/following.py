"""Following one job while it is drawn: scales that ran, previews, the picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from PIL import Image

from stepvar.serving.drawing import Cancelled, Drawn, Job
from stepvar.serving.engine import Engine
from stepvar.serving.errors import RequestError


@dataclass(frozen=True)
class ScaleDone:
    """A scale has run: its index."""

    scale: int


@dataclass(frozen=True)
class Preview:
    """The picture after a scale: its number among the job's previews, and what it looks like."""

    index: int
    image: Image.Image


class FollowedJob:
    """A job that is queued and followed; to be made in a running event loop.

    Args:
        job: What to draw; its callbacks are set here.
        engine: Draws it.
        timeout: Seconds to the last event.

    Raises:
        RequestError: When the queue is full, or the server is stopping.
    """

    def __init__(self, job: Job, engine: Engine, timeout: float) -> None:
        self.job = job
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + timeout
        self._arrived: asyncio.Queue[ScaleDone | Preview | None] = asyncio.Queue()

        def put(event: ScaleDone | Preview | None) -> None:
            loop.call_soon_threadsafe(self._arrived.put_nowait, event)

        job.on_scale = lambda scale: put(ScaleDone(scale))
        job.on_preview = lambda index, image: put(Preview(index, image))
        (self._future,) = engine.submit([job])
        self._future.add_done_callback(lambda _: put(None))

    def cancel(self) -> None:
        """Gives the job up, at once where it waits, at its next scale where it is drawn."""
        self.job.cancelled.set()

    async def events(self) -> AsyncGenerator[ScaleDone | Preview | Drawn, None]:
        """What happens, in order; the last event is the finished picture.

        When its reader goes, the job is given up at its next scale.

        Raises:
            RequestError: When the picture failed, or was not ready in time.
            Cancelled: When the job was given up.
        """
        try:
            while (event := await self._next()) is not None:
                yield event
            if self._future.cancelled():
                raise Cancelled
            yield self._future.result()
        finally:
            self.cancel()

    async def _next(self) -> ScaleDone | Preview | None:
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(self._arrived.get(), max(left, 0.0))
        except asyncio.TimeoutError:
            raise RequestError(
                504, "The picture was not ready in time: try again later.", code="timeout"
            ) from None
