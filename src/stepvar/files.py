"""Atomic writes: files and folders that get their names only when they are whole.

Everything is written into a staging folder beside its target and renamed from there. A staging folder has a
unique name and holds a lock while its process lives, whatever machine or container that runs in, so that what
a killed process left is never taken for what another one is writing.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from safetensors import SafetensorError

if sys.platform != "win32":
    import fcntl

PathLike = str | os.PathLike[str]

_PREFIX, _SUFFIX, _LOCK = ".stepvar-", ".partial", "lock"
_ATTEMPTS = 10
_ASSUMED_DEAD = 24 * 3600.0
"""Seconds after which a staging folder counts as left behind, on file systems without locks."""

_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EBADF}
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_SYSTEM_ERROR = re.compile(r"os error (\d+)|Os \{ code: (\d+)|\[Errno (\d+)\]")
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def is_staging(path: Path) -> bool:
    """Whether a path has the name of a staging folder: no reader should look at it."""
    return path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)


class Staging:
    """A folder to write into before files get their names; removed on exit with what is left in it.

    Stale staging folders in the same place are removed on entry.

    Args:
        parent: Existing folder, on the file system of the targets.

    Attributes:
        path: The staging folder, while the block runs.
    """

    path: Path

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._lock = -1

    def __enter__(self) -> Staging:
        sweep(self.parent)
        for _ in range(_ATTEMPTS):
            self.path = Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, self.parent))
            lock = self._acquire()
            if lock is not None:
                self._lock = lock
                return self
        raise OSError(errno.EAGAIN, "another process keeps removing temporary files here", str(self.parent))

    def _acquire(self) -> int | None:
        """Locks the new folder; None when a process that swept came in between."""
        file = self.path / _LOCK
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            return None
        if _lock(lock) is not False and file.exists():
            return lock
        os.close(lock)
        return None

    def write(self, path: Path, content: bytes) -> None:
        """Writes one file of the same file system, in new folders too, whole or not at all.

        Raises:
            OSError: Naming `path`, when it cannot be written.
        """
        with _reported_as(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = self.path / path.name
            staged.write_bytes(content)
            staged.replace(path)

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _lock(descriptor: int) -> bool | None:
    """Locks an open file; False when another process holds it, None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def sweep(folder: Path) -> None:
    """Removes staging folders whose process has ended; those of live processes stay."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if path.is_symlink():
            continue  # ours are folders, and what a link leads to is somebody else's
        # Another process may sweep or finish at the same time; what belongs to another user is left to them.
        with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
            _remove_if_stale(path)


def _remove_if_stale(path: Path) -> None:
    # Made anew where its process ended before it made it, or is about to: that one then starts again.
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        free = _lock(lock)
        if free is None:
            free = time.time() - path.stat().st_mtime > _ASSUMED_DEAD
        if free:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes one file, replacing what was there, whole or not at all.

    Raises:
        OSError: Naming `path`, when it cannot be written.
    """
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Writes several files, in new folders too: all of them or none.

    Files that all lie in one new folder appear with it in a single step. An interrupt during the last step
    waits until it is done; files that are replaced are put back when one of the others fails.

    Raises:
        OSError: Naming the file that cannot be written.
    """
    staged: dict[Path, Path] = {}
    stagings: dict[Path, Staging] = {}
    targets = {path: _topmost_new(path) for path in contents}
    with ExitStack() as stack:
        for path, content in contents.items():
            target = targets[path]
            with _reported_as(path):
                if target.parent not in stagings:
                    stagings[target.parent] = stack.enter_context(Staging(target.parent))
                place = staged.setdefault(target, stagings[target.parent].path / f"new-{len(staged)}")
                file = place / path.relative_to(target)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        with _interrupts_deferred():
            _rename_all(staged)


def _topmost_new(path: Path) -> Path:
    """The path itself, or the outermost of its folders that does not exist yet."""
    target = path
    while not target.parent.exists():
        target = target.parent
    return target


def _rename_all(staged: Mapping[Path, Path]) -> None:
    """Moves staged files and folders to their targets; undoes it when one cannot be moved."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for number, (target, source) in enumerate(staged.items()):
            backup = None
            if target.is_file() and len(staged) > 1:
                backup = source.with_name(f"old-{number}")
                target.rename(backup)
                done.append((target, backup))
            with _reported_as(target):
                source.replace(target)
            if backup is None:
                done.append((target, None))
    except BaseException:
        for target, backup in reversed(done):
            if backup is not None:
                backup.replace(target)
            elif target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
        raise


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Delays the effect of SIGINT, SIGTERM and SIGHUP to the end of the block.

    Signals are handled by the main thread alone; in another one nothing needs to be done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    handlers: dict[int, Callable[[int, FrameType | None], object] | int] = {}
    try:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # None is a handler that was not set from Python, and cannot be put back.
            if handler is not None and handler != signal.SIG_IGN:
                handlers[number] = handler
                signal.signal(number, remember)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextmanager
def staged_folder(output: PathLike) -> Iterator[Path]:
    """Yields a new folder that gets the name `output` only when everything in it was written.

    Raises:
        ValueError: When `output` exists already and is not an empty folder.
        OSError: Naming `output`, when a file system refuses, whatever library was writing.
    """
    output = Path(output).expanduser()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"'{output}' exists already; give the name of a new folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _reported_as(output), Staging(output.parent) as staging:
        folder = staging.path / output.name
        folder.mkdir()
        yield folder
        # safetensors writes files that only their owner may read; give all the folder's own permissions.
        permissions = folder.stat().st_mode & 0o666
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(permissions)
        with _interrupts_deferred():
            folder.replace(output)


@contextmanager
def _reported_as(path: Path) -> Iterator[None]:
    """Names a file by its final name in the errors of a file system, also where a library hides them.

    Writers in other languages (safetensors, torch) raise errors of their own that hold the system's number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or not _is_about_staging(error):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (RuntimeError, SafetensorError) as error:
        found = _SYSTEM_ERROR.search(str(error))
        number = int(next(filter(None, found.groups()))) if found else 0
        if number not in _WRITE_ERRORS:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _is_about_staging(error: OSError) -> bool:
    """Whether an error names a staged file, or is one of writing that names none."""
    if error.filename is None:
        return error.errno in _WRITE_ERRORS
    return any(is_staging(Path(part)) for part in Path(str(error.filename)).parts)
