"""Peak memory of one piece of work."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def with_peak_memory(work: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """Runs something, and measures by how many bytes memory grew meanwhile.

    On CUDA that is the device's allocated memory, on Linux this process's resident memory; elsewhere it
    cannot be measured, and is None.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    resident = _restart()
    result = work()
    return result, None if resident is None else max(_status("VmHWM") - resident, 0)


def _restart() -> int | None:
    """Sets the process's high-water mark to its present size, and returns that."""
    try:
        # What the allocator holds back from earlier work would hide growth.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{_STATUS} has no line {name}.")
