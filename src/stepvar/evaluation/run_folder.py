"""The folder of a benchmark's pictures: whose it is, and what of it is drawn.

One folder holds one run: `settings.json` tells which, `images/` is what the scorer gets, `manifest.jsonl` has
one line a picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS, MANIFEST, IMAGES = "settings.json", "manifest.jsonl", "images"


@dataclass(frozen=True)
class Shard:
    """One of several processes that share the work.

    Attributes:
        index, count: Which, from 1, of how many.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(
                f"The shard {self.index}/{self.count} does not exist: use 1/{self.count} and on."
            )

    @property
    def manifest(self) -> str:
        return MANIFEST if self.count == 1 else f"manifest-{self.index}-of-{self.count}.jsonl"


class RunFolder:
    """The folder of one run.

    Args:
        path: New, empty, or holding this very run.
        identity: What two processes must share to draw into one folder.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity = path, identity

    def claim(self) -> bool:
        """Makes the folder this run's, unless it is another's; returns whether it was not before.

        Raises:
            ValueError: When it holds another run, or other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"'{self.path}' is a file: name a folder.")
        if not self.path.exists() and not self.path.parent.is_dir():
            raise ValueError(f"There is no folder '{self.path.parent}': create it first.")
        file = self.path / SETTINGS
        fresh = not file.exists()
        if fresh:
            strangers = sorted(entry.name for entry in self.path.glob("*")) if self.path.exists() else []
            if [name for name in strangers if not name.endswith(".partial")]:
                raise ValueError(f"'{self.path}' holds other files ({strangers[0]}): name a new folder.")
            self.path.mkdir(exist_ok=True)
            write_atomically(file, json.dumps(self.identity, indent=1).encode())
        try:
            stored = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"'{file}' is damaged: name a new folder.") from error
        mine = json.loads(json.dumps(self.identity))
        different = [key for key in mine if not isinstance(stored, dict) or stored.get(key) != mine[key]]
        if different:
            raise ValueError(
                f"'{self.path}' holds another run (its {different[0]} differs): name a new folder, or ask "
                "for the same model, prompts, plan and settings."
            )
        return fresh

    def leave(self, manifest: Path) -> None:
        """Makes the folder as it was before a run that drew nothing."""
        manifest.unlink()
        (self.path / SETTINGS).unlink()
        for place in sorted(self.path.rglob("*"), reverse=True):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def tidy(self, manifest: Path) -> dict[str, dict[str, Any]]:
        """Drops lines of a manifest whose file is missing; returns the others by file."""
        entries = _read_manifest(manifest, self.path)
        write_atomically(manifest, "".join(json.dumps(entry) + "\n" for entry in entries.values()).encode())
        return entries

    def merge(self, wanted: Sequence[str]) -> int:
        """Writes the whole manifest once all shards are done; returns how many files are missing."""
        entries: dict[str, dict[str, Any]] = {}
        for manifest in sorted(self.path.glob("manifest*.jsonl")):
            entries.update(_read_manifest(manifest, self.path))
        missing = [name for name in wanted if name not in entries]
        if not missing:
            lines = "".join(json.dumps(entries[name]) + "\n" for name in wanted)
            write_atomically(self.path / MANIFEST, lines.encode())
        return len(missing)


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The lines of a complete run.

    Raises:
        ValueError: When there is none, or it is not complete.
    """
    file = folder / MANIFEST
    if not file.is_file():
        shards = list(folder.glob("manifest-*.jsonl"))
        state = "some shards are not finished" if shards else "no run of 'stepvar evaluate' is there"
        raise ValueError(f"'{folder}' has no {MANIFEST}: {state}.")
    entries = list(_read_manifest(file, folder).values())
    lines = len(file.read_text("utf-8").splitlines())
    if len(entries) < lines or not entries:
        raise ValueError(f"'{folder}' lacks {lines - len(entries)} of its {lines} pictures: run it again.")
    return entries


def _read_manifest(file: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Lines by file, of files that are there; a line that was cut off by an interruption is dropped."""
    if not file.is_file():
        return {}
    entries = {}
    for line in file.read_text("utf-8").splitlines():
        try:
            entry = json.loads(line)
            name = entry["file"]
        except (ValueError, KeyError, TypeError):
            continue
        if (folder / name).is_file():
            entries[name] = entry
    return entries


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that gets its name only when it is whole."""
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
