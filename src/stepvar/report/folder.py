"""Folder of a report: which run it holds, and the raw numbers of every step, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepvar.files import is_staging, write_atomically

RUN = "run.json"
RAW = "raw"
PAGE = "index.html"
NUMBERS = "numbers.json"

_FORMAT = 2


class ReportFolder:
    """The folder of one run.

    Args:
        path: The folder; it may be new, but not its parent.
        identity: What makes this run this run: model, versions, machine, what was asked for.

    Raises:
        ValueError: When the folder holds something else, or another run.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        check_place(path)
        self.run = self._stored_run()

    def _stored_run(self) -> dict[str, Any] | None:
        """What the folder holds already; None when it is new."""
        file = self.path / RUN
        if not file.exists():
            return None
        try:
            run = json.loads(file.read_text("utf-8"))
            stored, known = run["identity"], run["format"] == _FORMAT and isinstance(run["protocol"], dict)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"'{file}' is damaged ({type(error).__name__}): name a new folder.") from error
        if not known:
            raise ValueError(f"'{self.path}' was written by another version: name a new folder.")
        different = [key for key in {**stored, **self.identity} if stored.get(key) != self.identity.get(key)]
        if different:
            key = different[0]
            raise ValueError(
                f"'{self.path}' holds another run ({key}: {_short(stored.get(key))}, now "
                f"{_short(self.identity.get(key))}): name a new folder, or remove this one."
            )
        return run

    def start(self, protocol: Mapping[str, Any]) -> None:
        """Makes the folder hold this run."""
        self.path.mkdir(exist_ok=True)
        (self.path / RAW).mkdir(exist_ok=True)
        self.run = {"format": _FORMAT, "identity": self.identity, "protocol": dict(protocol)}
        self.write_text(RUN, json.dumps(self.run, indent=1))

    def load(self, step: str) -> Any:
        """Raw numbers of a step; None when they are not there, or not whole."""
        try:
            numbers = json.loads(self._raw(step).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return numbers if isinstance(numbers, dict) else None

    def save(self, step: str, numbers: Any) -> None:
        """Writes the raw numbers of a step.

        Raises:
            ValueError: When a number is not finite: a table made from it would be wrong.
        """
        self.write_text(f"{RAW}/{step}.json", json.dumps(numbers, allow_nan=False, separators=(",", ":")))

    def write_text(self, name: str, text: str) -> Path:
        """Writes a file that gets its name only when it is whole."""
        path = self.path / name
        write_atomically(path, text.encode())
        return path

    def _raw(self, step: str) -> Path:
        return self.path / RAW / f"{step}.json"


def check_place(path: Path) -> None:
    """Refuses a place where no report can be, or go on.

    Raises:
        ValueError: When it is a file, cannot be written to, or holds other files.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"'{path}' is a file: name a folder for the report.")
    if not path.exists() and not path.parent.is_dir():
        raise ValueError(f"There is no folder '{path.parent}' for '{path}': create it first.")
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"'{place}' cannot be written to: name another folder for the report.")
    if path.exists() and not (path / RUN).exists():
        # A run that was stopped before its first file was whole leaves only these.
        strangers = sorted(
            entry.name
            for entry in path.iterdir()
            if not is_staging(entry) and not (entry.name == RAW and not any(entry.iterdir()))
        )
        if strangers:
            raise ValueError(f"'{path}' holds other files ({strangers[0]}) and no report: name a new folder.")


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
