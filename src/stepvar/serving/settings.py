"""Settings of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Limits and waiting times of a server.

    Attributes:
        max_batch: Pictures drawn at a time, of one size and plan. Larger batches draw more pictures a
            second on a GPU and take more memory.
        batch_wait: Seconds that the first of several pictures waits for others to be drawn with: the
            most that batching adds to the latency of a lone request.
        max_waiting: Pictures that may wait; a request beyond them is answered with 429.
        timeout: Seconds from a request's arrival to its answer; then 504.
        max_prompt: Characters of a prompt.
        max_pictures: Pictures of one request.
        max_body: Bytes of a request's body.
        kept_pictures: Pictures kept in memory for `response_format: url`.
        exact: Whether a picture is the same, bit for bit, whatever it is drawn with: pictures of a batch are
            then drawn one after the other, since matrix products may round differently with more rows.
        api_key: What clients send as a bearer token; None lets everybody in.

    Raises:
        ValueError: When a limit is not positive, or a time is negative.
    """

    max_batch: int = 4
    batch_wait: float = 0.02
    max_waiting: int = 64
    timeout: float = 300.0
    max_prompt: int = 4_000
    max_pictures: int = 10
    max_body: int = 65_536
    kept_pictures: int = 64
    exact: bool = True
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "max_prompt", "max_pictures", "max_body", "kept_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 0.0 <= self.batch_wait < float("inf"):
            raise ValueError(f"batch_wait is {self.batch_wait}; use 0 seconds or more.")
        if not 0.0 < self.timeout < float("inf"):
            raise ValueError(f"timeout is {self.timeout}; it must be a positive number of seconds.")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api_key is empty: give a key, or none to let everybody in.")
