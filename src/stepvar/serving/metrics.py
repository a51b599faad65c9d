"""Prometheus metrics of the server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ServerMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "stepvar_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.pictures = Counter("stepvar_pictures", "Pictures drawn.", registry=self.registry)
        self.failures = Counter("stepvar_failed_batches", "Batches that failed.", registry=self.registry)
        self.batch_size = Histogram(
            "stepvar_batch_size", "Pictures a batch.", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.batch_seconds = Histogram(
            "stepvar_batch_seconds", "Seconds a batch.", buckets=_SECONDS, registry=self.registry
        )
        self.request_seconds = Histogram(
            "stepvar_request_seconds",
            "Seconds from a request for pictures to its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge("stepvar_waiting_pictures", "Pictures in the queue.", registry=self.registry)
        self._batches, self._seconds = 0, 0.0

    def batch_done(self, pictures: int, seconds: float) -> None:
        """Counts a batch that was drawn."""
        self.pictures.inc(pictures)
        self.batch_size.observe(pictures)
        self.batch_seconds.observe(seconds)
        self._batches, self._seconds = self._batches + 1, self._seconds + seconds

    def mean_batch_seconds(self) -> float:
        """Mean time of a batch so far; 1 before the first."""
        return self._seconds / self._batches if self._batches else 1.0

    def text(self, waiting: int) -> bytes:
        """All metrics in Prometheus' text format."""
        self.waiting.set(waiting)
        return generate_latest(self.registry)
