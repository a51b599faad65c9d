"""Ctrl-C at any moment: quiet, exit code 130, nothing half-written.

Imports next to nothing, so that it is in place milliseconds after the program has started.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class _Interrupts:
    """What an interrupt does now.

    Attributes:
        unwinding: How many `Unwinding` blocks are open.
        exit_code: What the program ends with.
        seen: Whether an interrupt was turned into an exception already.
    """

    unwinding = 0
    exit_code = 128 + int(signal.SIGINT)
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
    """Makes SIGINT, SIGTERM and SIGHUP end the program quietly, for a program whose `main` this is."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None:
            continue
        # A shell that runs a program in the background makes it ignore SIGINT, and nohup SIGHUP; that stays.
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        try:
            signal.signal(number, _interrupts.handle)
        except ValueError:  # not in the main thread, to which signals do not come
            return


class Unwinding:
    """A block that must clean up after itself: an interrupt raises KeyboardInterrupt inside it."""

    def __enter__(self) -> None:
        _interrupts.unwinding += 1

    def __exit__(self, *_error: object) -> None:
        _interrupts.unwinding -= 1


def interrupted_exit_code() -> int:
    """Exit code of a program that an interrupt ended."""
    return _interrupts.exit_code
