"""Setting of the C library's allocator for freed memory."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""

_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next allocation instead of giving it back to the system.

    glibc maps every large tensor anew and unmaps it when it is freed, so that each one's pages are faulted in
    and zeroed again: a quarter of the time of a large model on a CPU. The price is that the process stays as
    large as it once was. It concerns the whole process, so a program decides it, not a library on import; the
    command line and the benchmarks do.

    Returns:
        Whether it is done: False where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
