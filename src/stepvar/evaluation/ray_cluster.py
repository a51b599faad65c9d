"""A Ray cluster to work on: joined where one is named, else started on this machine, quietly."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

LOCAL = "local"
"""Address that starts a cluster of this machine alone."""

_ADDRESS = re.compile(r"[\w.-]+:\d{1,5}")
_OBJECT_STORE = 80_000_000
"""Bytes of shared memory of a cluster that is started here: pictures are never sent through it."""

_PATIENCE = 5.0
"""Seconds in which a cluster must answer."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Errors of its C++ part that are retried are not ours to show; they stay in its log files.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class Workers:
    """The pool of workers that a run asks for.

    Attributes:
        size: How many; None is one a GPU, or as many as the CPUs allow.
        cpus: CPUs, and threads, of each.
        gpus: GPUs of each, 0 or 1; None is one where the cluster has any.
    """

    size: int | None = None
    cpus: int = 1
    gpus: int | None = None


@dataclass(frozen=True)
class Pool:
    """A pool that a cluster has room for: how many workers, CPUs and GPUs of each."""

    size: int
    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """What a worker draws on: a process that was given one GPU sees no other."""
        return "cuda" if self.gpus else "cpu"

    def limited(self, groups: int) -> Pool:
        """The same, without workers that would have nothing to do."""
        return replace(self, size=max(min(self.size, groups), 1))


def is_address(text: str) -> bool:
    """Whether a text names a cluster: local, or HOST:PORT."""
    return text == LOCAL or _ADDRESS.fullmatch(text) is not None


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Joins a cluster while the block runs; one that is started for it ends with it.

    A cluster that this process is connected to already is used as it is.

    Args:
        address: `HOST:PORT` or `local`; None is that of the variable RAY_ADDRESS, else local.

    Raises:
        ValueError: When Ray is not installed, or no cluster answers.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            f"Ray is not installed whole ({error}): pip install 'stepvar[ray]', or use --shard."
        ) from error
    # Ray prints on stdout what it notices of its workers, and sets its loggers up anew when it likes.
    with contextlib.redirect_stdout(io.StringIO()), _logs_disabled():
        if ray.is_initialized():
            yield
            return
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with _stderr_dropped():
                _join(address)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray takes it over
            yield
        finally:
            ray.shutdown()


@contextmanager
def _logs_disabled() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _stderr_dropped() -> Iterator[None]:
    """Drops what Ray's C++ part writes while it starts; what goes wrong it raises."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _join(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    asked = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if asked == LOCAL:
        ray.init(LOCAL, include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
        return
    refusal = (
        f"No Ray cluster answers at '{asked}': start one with 'ray start --head', or use --ray local for one "
        "of this machine."
    )
    if not is_address(asked):
        raise ValueError(f"The address '{asked}' of a Ray cluster is not understood: write HOST:PORT.")
    host, _, port = asked.rpartition(":")
    try:
        # Ray itself would try for minutes.
        socket.create_connection((host, int(port)), _PATIENCE).close()
        ray.init(asked, **quiet)
    except (OSError, OverflowError, RuntimeError) as error:
        raise ValueError(refusal) from error


def fit(wanted: Workers) -> Pool:
    """The pool that the joined cluster has room for.

    Raises:
        ValueError: When it has not, or has no GPU although one was asked for.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    gpus = int(have_gpus) if wanted.gpus is None else wanted.gpus
    if gpus and not have_gpus:
        raise ValueError("The Ray cluster has no GPU: leave --device out, or use --device cpu.")
    room = 0
    for node in nodes:
        by_cpus = int(node.get("CPU", 0)) // wanted.cpus
        room += min(by_cpus, int(node.get("GPU", 0))) if gpus else by_cpus
    each = f"{wanted.cpus} CPUs{' and a GPU' if gpus else ''}"
    if not room:
        raise ValueError(f"No machine of the Ray cluster has {each} for a worker: lower --worker-cpus.")
    if wanted.size is not None and wanted.size > room:
        raise ValueError(
            f"The Ray cluster has room for {room} workers of {each}, not for {wanted.size}: lower --workers."
        )
    return Pool(wanted.size or room, wanted.cpus, gpus)
