"""Processes that are killed at a chosen file operation: every moment at which a file can be half-written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")


def killed(work: Callable[[], object], folder: Path, operation: int) -> bool:
    """Runs some work in a child process that kills itself at the n-th file operation below a folder.

    Args:
        work: Must not print; the child shares everything that is loaded.
        folder: Operations elsewhere do not count.
        operation: From 1.

    Returns:
        Whether it was killed; False when the work was done before.
    """
    child = os.fork()
    if child == 0:
        _kill_at(folder, operation)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return False


def _kill_at(folder: Path, operation: int) -> None:
    """Installs a hook that ends this process; it cannot be removed, so only a child may do this."""
    left = operation
    prefix = str(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and any(str(argument).startswith(prefix) for argument in arguments[:2]):
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
