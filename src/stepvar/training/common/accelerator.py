"""Accelerator of a run: device, processes and experiment trackers, by Hugging Face accelerate."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.multiprocessing as multiprocessing
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import PrepareForLaunch, patch_environment

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TRACKERS = ("tensorboard", "wandb", "trackio")
"""Experiment trackers, each a package of its own."""


def build_accelerator(device: str, folder: Path, log_with: str = "") -> Accelerator:
    """An accelerator for this process.

    Args:
        device: "cpu", "cuda", or "auto" for CUDA where it is.
        folder: Of the run; trackers write there.
        log_with: One of `TRACKERS`, or empty for none.

    Raises:
        ValueError: When the device is missing, or the tracker is unknown or not installed.
    """
    check_device(device)
    check_tracker(log_with)
    # It warns of T5's tied embeddings at every checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    return Accelerator(
        cpu=not uses_cuda(device),
        log_with=log_with or None,
        project_dir=folder,
        # A learned vector that replaces dropped prompts has no gradient in a batch that drops none.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def check_device(name: str) -> None:
    """Refuses a device that is unknown or missing.

    Raises:
        ValueError: When it is.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"There is no device {name!r}; use auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("CUDA is not available here; use the device cpu.")


def uses_cuda(device: str) -> bool:
    """Whether a device's name stands for CUDA on this machine."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def check_tracker(name: str) -> None:
    """Refuses a tracker that accelerate would leave out without a message.

    Raises:
        ValueError: When it is unknown or not installed.
    """
    if not name:
        return
    if name not in TRACKERS:
        raise ValueError(f"There is no tracker {name!r}; use one of {', '.join(TRACKERS)}.")
    if name not in {tracker.value for tracker in get_available_trackers()}:
        raise ValueError(f"The tracker {name} is not installed: pip install {name}.")


def start_trackers(accelerator: Accelerator, settings: DataclassInstance) -> None:
    """Begins a run in the trackers, with its settings as numbers and texts."""
    if accelerator.log_with:
        simple = (bool, int, float, str)
        config = {
            name: value if isinstance(value, simple) else str(value)
            for name, value in asdict(settings).items()
        }
        accelerator.init_trackers("stepvar", config=config)


def launch(function: Callable[..., Any], arguments: tuple[Any, ...], processes: int) -> None:
    """Calls a function in several processes of the CPU, each with a share of the threads.

    Args:
        function: Builds its accelerator by `build_accelerator("cpu", ...)`; sent to every process.
        arguments: Of the function.
        processes: 1 calls it in this process.
    """
    if processes <= 1:
        function(*arguments)
        return
    _reuse_freed_memory()
    threads = max((os.cpu_count() or 1) // processes, 1)
    with patch_environment(
        nproc=processes,
        world_size=processes,
        local_world_size=processes,
        master_addr="127.0.0.1",
        master_port=_free_port(),
        omp_num_threads=threads,
    ):
        multiprocessing.start_processes(
            PrepareForLaunch(function, distributed_type="MULTI_CPU"),
            args=arguments,
            nprocs=processes,
            start_method="spawn",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _reuse_freed_memory() -> None:
    """Lets the processes started from here reuse freed memory, in huge pages: a third less time a step.

    Otherwise every large tensor is mapped anew, and its pages are cleared one by one.
    """
    # One tunable and two older names: glibc hands no more than the first tunable on to grandchildren.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
