"""The error of an input that cannot be used, and helpers that word it."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 3
"""How many names an error lists before it only counts."""


class CheckpointError(ValueError):
    """A weight file or model folder cannot be used; the message says in one sentence why, and what would
    work."""


def listing(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: Exception) -> str:
    """The first line of another library's error, without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")
