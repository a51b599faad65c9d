"""Fidelity of pairs of picture files, measured by several processes.

Imports no torch, so that a process starts in a fraction of a second.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepvar.media.pictures import read_picture
from stepvar.metrics.fidelity import bounded_psnr, high_frequency_energy, ssim

Pixels = NDArray[np.uint8]
Pair = tuple[Path, Path]

_PAIRS_A_PROCESS = 8
"""Fewer than these are not worth the start of a process."""


def available_processes() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_picture(path: Path) -> Pixels:
    """A picture as uint8 [H, W, 3].

    Raises:
        ValueError: When the file is damaged.
    """
    try:
        return np.asarray(read_picture(path))
    except ValueError as error:
        raise ValueError(f"'{path}' is no readable picture: draw it anew.") from error


def measure_pair(pair: Pair) -> dict[str, float]:
    """PSNR, SSIM and fine detail of a picture against its reference.

    Raises:
        ValueError: When a file is damaged, or the sizes differ.
    """
    ours, reference = (load_picture(path) for path in pair)
    if ours.shape != reference.shape:
        raise ValueError(f"'{pair[0]}' and its counterpart differ in size: draw them anew.")
    energies = [high_frequency_energy(picture) for picture in (ours, reference)]
    return {
        "psnr": bounded_psnr(ours, reference),
        "ssim": ssim(ours, reference),
        "fine_detail": energies[0] / max(energies[1], 1e-9),
    }


def measure_pairs(pairs: Sequence[Pair], processes: int = 1) -> Iterator[dict[str, float]]:
    """Measures of every pair, in order.

    Args:
        processes: At most; fewer where there are few pairs. More than one needs a program that may be
            imported again, see `multiprocessing`.

    Raises:
        ValueError: When a file is damaged, or sizes differ.
    """
    processes = min(processes, len(pairs) // _PAIRS_A_PROCESS)
    if processes < 2:
        yield from map(measure_pair, pairs)
        return
    # Spawned, for a fork would copy the state of torch's threads.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_end_with_parent)
    try:
        yield from pool.map(measure_pair, pairs, chunksize=_PAIRS_A_PROCESS // 2)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Makes a worker leave interrupts to its parent, and end when that has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
