"""Memory that a program frees stays its own once it asked for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepvar.allocator import keep_freed_memory

PROGRAM = """
import ctypes
import sys
from stepvar.allocator import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
done = sys.argv[1] == "keep" and keep_freed_memory()
before, size = resident(), 2**28
block = library.malloc(size)
ctypes.memset(block, 1, size)
library.free(block)
print(done, (resident() - before) * 4096 > size // 2)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("how", ["leave", "keep"])
def test_freed_memory_is_kept_where_it_can_be(how: str) -> None:
    command = [sys.executable, "-c", PROGRAM, how]

    # A training in this process may have set what its own child processes keep.
    tuned = ("MALLOC_", "GLIBC_TUNABLES")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
    done, kept = subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout.split()

    assert kept == done


def test_other_systems_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert keep_freed_memory() is False
