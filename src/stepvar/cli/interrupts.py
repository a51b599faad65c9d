"""Ctrl-C at any moment: quiet, exit code 130, nothing half-written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Interrupts:
    """What an interrupt does now.

    Attributes:
        unwinding: How many `unwinding` blocks are open.
        exit_code: What the program ends with.
        seen: Whether an interrupt was turned into an exception already.
    """

    unwinding = 0
    exit_code = 128 + signal.SIGINT
    seen = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Leaves at once, or raises where something must be cleaned up first."""
        self.exit_code = 128 + number
        if self.unwinding and not self.seen:
            self.seen = True
            raise KeyboardInterrupt
        # Not an exception: libraries that are being imported, or call back from C, print or swallow those.
        os._exit(self.exit_code)


_interrupts = _Interrupts()


def leave_on_interrupt() -> None:
    """Makes SIGINT and SIGTERM end the program quietly, for a program whose `main` this is."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell that runs a program in the background makes it ignore SIGINT; that stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupts.handle)


@contextmanager
def unwinding() -> Iterator[None]:
    """A block that must clean up after itself: an interrupt raises KeyboardInterrupt inside it."""
    _interrupts.unwinding += 1
    try:
        yield
    finally:
        _interrupts.unwinding -= 1


def interrupted_exit_code() -> int:
    """Exit code of a program that an interrupt ended."""
    return int(_interrupts.exit_code)
