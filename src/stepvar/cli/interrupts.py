"""Signal handling: Ctrl-C, SIGTERM and SIGHUP end the program quietly, with nothing half-written.

Imports next to nothing, so that the handlers are in place milliseconds after the program has started.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _SignalState:
    """What a signal does at this moment.

    Attributes:
        cleanups: How many `CleanupOnInterrupt` blocks are open.
        exit_code: Exit code of the program once a signal has come.
        raised: Whether a signal was turned into an exception already.
    """

    def __init__(self) -> None:
        self.cleanups = 0
        self.exit_code = 128 + int(signal.SIGINT)
        self.raised = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Ends the program at once, or raises where something must be cleaned up first."""
        self.exit_code = 128 + number
        if self.cleanups and not self.raised:
            self.raised = True
            raise KeyboardInterrupt
        # Not an exception: libraries that are being imported, or call back from C, print or swallow those.
        os._exit(self.exit_code)


_state = _SignalState()


def install_signal_handlers() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP end the program quietly, for a program whose `main` this is."""
    for number in _SIGNALS:
        # A shell that runs a program in the background makes it ignore SIGINT, nohup SIGHUP; that stays so.
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        try:
            signal.signal(number, _state.handle)
        except ValueError:  # not in the main thread, to which signals do not come
            return


class CleanupOnInterrupt:
    """A block that must clean up after itself: a signal raises KeyboardInterrupt inside it."""

    def __enter__(self) -> None:
        _state.cleanups += 1

    def __exit__(self, *_error: object) -> None:
        _state.cleanups -= 1


def interrupted_exit_code() -> int:
    """Exit code of a program that a signal ended: 128 and the signal's number."""
    return _state.exit_code
