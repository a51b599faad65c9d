"""Queue and drawing thread of the server: requests that wait together are drawn as one batch."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from stepvar.serving.drawing import Cancelled, Drawn, Job
from stepvar.serving.errors import RequestError
from stepvar.serving.metrics import ServerMetrics
from stepvar.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


class BatchDrawer(Protocol):
    """Draws jobs of equal settings; see `stepvar.serving.drawing.Drawer`."""

    def draw(self, jobs: Sequence[Job]) -> list[Drawn | None]:
        """One picture a job, in order; None for one that was cancelled."""
        ...


class Engine:
    """One drawing thread behind a bounded queue.

    Args:
        drawer: Draws a batch.
        settings: Limits.
        metrics: Counts what happens.
    """

    def __init__(self, drawer: BatchDrawer, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self.drawer, self.settings, self.metrics = drawer, settings, metrics
        self._waiting: deque[tuple[Job, Future[Drawn], float]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._drawing = 0
        self._thread = threading.Thread(target=self._run, name="stepvar-drawing", daemon=True)

    def start(self) -> None:
        """Starts the drawing thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finishes the batch that is being drawn, refuses the rest, and ends the thread."""
        with self._changed:
            self._stopping = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for _job, future, _since in refused:
            if future.set_running_or_notify_cancel():
                future.set_exception(_stopping())
        if self._thread.is_alive():
            self._thread.join()

    @property
    def stopping(self) -> bool:
        """Whether no more requests are taken."""
        return self._stopping

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._waiting)

    @property
    def drawing(self) -> int:
        """Pictures of the batch that is being drawn."""
        return self._drawing

    def submit(self, jobs: Sequence[Job]) -> list[Future[Drawn]]:
        """Queues the jobs of one request, all or none.

        Raises:
            RequestError: When the queue is full, or the server is stopping.
        """
        with self._changed:
            if self._stopping:
                raise _stopping()
            if len(self._waiting) + len(jobs) > self.settings.max_waiting:
                raise RequestError(
                    429,
                    f"{len(self._waiting)} pictures are waiting already: try again later, or ask for fewer.",
                    code="rate_limit_exceeded",
                    retry_after=self._retry_after(),
                )
            futures: list[Future[Drawn]] = [Future() for _ in jobs]
            now = time.monotonic()
            self._waiting.extend((job, future, now) for job, future in zip(jobs, futures, strict=True))
            self._changed.notify_all()
        return futures

    def _retry_after(self) -> int:
        """Whole seconds until about half of the queue is drawn."""
        batches = len(self._waiting) / (2 * self.settings.max_batch)
        return max(1, min(60, round(batches * self.metrics.mean_batch_seconds())))

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            self._drawing = len(batch)
            try:
                self._draw(batch)
            finally:
                self._drawing = 0

    def _next_batch(self) -> list[tuple[Job, Future[Drawn]]] | None:
        """The oldest job, and others of its settings that wait or come in time; None at the end."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._waiting:
                    break
                if self._stopping:
                    return None
                self._changed.wait()
            first, _, since = self._waiting[0]
            deadline = since + self.settings.batch_wait
            while not self._stopping and self._alike(first) < self.settings.max_batch:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return self._take(first)

    def _drop_cancelled(self) -> None:
        gone = [entry for entry in self._waiting if entry[0].cancelled.is_set()]
        for entry in gone:
            self._waiting.remove(entry)
            entry[1].cancel()

    def _alike(self, first: Job) -> int:
        return sum(job.settings == first.settings for job, _, _ in self._waiting)

    def _take(self, first: Job) -> list[tuple[Job, Future[Drawn]]]:
        batch: list[tuple[Job, Future[Drawn]]] = []
        left: deque[tuple[Job, Future[Drawn], float]] = deque()
        for job, future, since in self._waiting:
            if job.settings == first.settings and len(batch) < self.settings.max_batch:
                if future.set_running_or_notify_cancel():
                    batch.append((job, future))
            else:
                left.append((job, future, since))
        self._waiting = left
        return batch

    def _draw(self, batch: Sequence[tuple[Job, Future[Drawn]]]) -> None:
        if not batch:
            return
        started = time.monotonic()
        try:
            drawn = self.drawer.draw([job for job, _ in batch])
        except Cancelled:
            for _, future in batch:
                future.set_exception(Cancelled())
            return
        except Exception as error:  # the thread must live on, whatever a batch ran into
            logger.exception("a batch of %d pictures failed", len(batch))
            self.metrics.failures.inc()
            for _, future in batch:
                future.set_exception(_failure(error))
            return
        self.metrics.batch_done(len(batch), time.monotonic() - started)
        for (_, future), picture in zip(batch, drawn, strict=True):
            if picture is None:
                future.set_exception(Cancelled())
            else:
                future.set_result(picture)


def _stopping() -> RequestError:
    return RequestError(503, "The server is stopping: try again later.", code="stopping", retry_after=5)


def _failure(error: Exception) -> RequestError:
    """What a client learns of a batch that failed: no path, no traceback."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return RequestError(
            503, "The server ran out of memory on this request: ask for a smaller size.", code="memory"
        )
    return RequestError(500, "The server could not draw this picture; its log says why.", code="internal")
