"""Error messages: every exception becomes one sentence and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from typing import ParamSpec, TypeVar

import typer

from stepvar.cli.interrupts import interrupted_exit_code

BAD_INPUT = 2
"""Exit code when the input cannot be used; nothing has been written then."""

UNEXPECTED = 1
"""Exit code of an error that was not foreseen: a bug of stepvar."""

BROKEN_PIPE = 128 + 13
"""Exit code when the reader of our output has gone, as a program killed by SIGPIPE has."""

_PACKAGE = Path(__file__).resolve().parents[1]
_LONGEST = 600

_OUT_OF_MEMORY = (
    "Out of memory: draw fewer pictures at a time (--batch 1), smaller ones (--size, --budget) or shorter "
    "videos (--seconds), decode videos in tiles (--tile 24), prune more (--pruning paper), or use "
    "--dtype bfloat16 or --offload."
)
_OUT_OF_MEMORY_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "failed to map segment",
)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class InputError(ValueError):
    """Something given on the command line cannot be used; the message says why in one sentence."""


def report_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wraps a command so that every error ends it with one sentence on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(report(error)) from None

    return wrapped


def report(error: BaseException) -> int:
    """Shows an exception as one sentence on stderr; returns the exit code.

    Raises:
        Exception: The exception itself, when STEPVAR_DEBUG is set.
    """
    if isinstance(error, KeyboardInterrupt):
        return interrupted_exit_code()
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return BROKEN_PIPE
    if not isinstance(error, Exception) or os.environ.get("STEPVAR_DEBUG"):
        raise error
    code, sentence = describe_error(error)
    with suppress(OSError):  # a full disk may be behind stderr too
        typer.echo(f"Error: {sentence}", err=True)
    if isinstance(error, OSError):
        _discard_stdout()
    return code


def describe_error(error: Exception) -> tuple[int, str]:
    """Exit code and sentence of an exception."""
    if is_out_of_memory(error):
        return BAD_INPUT, _OUT_OF_MEMORY
    if isinstance(error, OSError) and error.strerror:
        return BAD_INPUT, one_line(describe_os_error(error))
    if isinstance(error, ValueError) and _raised_by_stepvar(error):
        return BAD_INPUT, one_line(str(error))
    return UNEXPECTED, one_line(
        f"stepvar stopped on an unexpected {type(error).__name__} ({error}); "
        "set STEPVAR_DEBUG=1 to see where it comes from."
    )


def describe_os_error(error: OSError) -> str:
    """What a failed operation on a file means, in a sentence."""
    place = f"'{error.filename}'" if error.filename else "The output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place} cannot be written, the disk is full: free some space, or choose another place."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place} cannot be used, permission is denied: choose another place."
    return f"{place} cannot be used: {error.strerror}."


def one_line(text: str) -> str:
    """A text of any origin as one printable line of bounded length."""
    line = "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}"
        for character in " ".join(text.split())
    )
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception, of whatever type, says that memory ran out."""
    torch = sys.modules.get("torch")
    kinds = (MemoryError, getattr(getattr(torch, "cuda", None), "OutOfMemoryError", MemoryError))
    if isinstance(error, kinds) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch reports a failed allocation on the CPU, and the loader a failed mapping, only in words.
    message = str(error).lower()
    return isinstance(error, (RuntimeError, ImportError)) and any(
        words in message for words in _OUT_OF_MEMORY_WORDS
    )


def _raised_by_stepvar(error: Exception) -> bool:
    """Whether our own code raised an exception: then it is a sentence; a library's would be a bug of ours."""
    frames = [frame for frame, _line in walk_tb(error.__traceback__)]
    # Both sides resolved: an installation may be reached through a symbolic link.
    return bool(frames) and Path(frames[-1].f_code.co_filename).resolve().is_relative_to(_PACKAGE)


def _discard_stdout() -> None:
    """Points stdout to nowhere, so that the interpreter's own last flush does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return
