"""Folder of a benchmark's pictures: which run it holds, and which of its pictures are there.

One folder holds one run: `settings.json` names it, `images/` is for the scorer, `manifest.jsonl` has one line
a picture. Files are staged outside `images/`, which holds nothing but whole pictures at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stepvar.evaluation.manifest import MANIFEST, MANIFESTS, Entry, format_entries, read_valid
from stepvar.evaluation.text_files import parse_object, read_text
from stepvar.files import is_staging, sweep, write_atomically

SETTINGS, IMAGES = "settings.json", "images"

Work = TypeVar("Work")


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

    def of(self, groups: Sequence[Work]) -> Sequence[Work]:
        """This process's part of some pieces of work."""
        return groups[self.index - 1 :: self.count]

    @property
    def manifest(self) -> str:
        """Name of the file in which this process lists its pictures.

        Never `manifest.jsonl`: where that is, the run is complete.
        """
        return f"manifest-{self.index}-of-{self.count}.jsonl"


def check_run_folder(path: Path) -> None:
    """Refuses a place where no run can be, before a model is loaded.

    Raises:
        ValueError: When it is a file, its parent is missing, or it holds other files.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"'{path}' is a file: name a folder.")
    if not path.exists() and not path.parent.is_dir():
        raise ValueError(f"There is no folder '{path.parent}': create it first.")
    if path.exists() and not (path / SETTINGS).exists():
        strangers = sorted(entry.name for entry in path.iterdir() if not is_staging(entry))
        if strangers:
            raise ValueError(f"'{path}' holds other files ({strangers[0]}): name a new folder.")


class RunFolder:
    """The folder of one run.

    Args:
        path: New, empty, or holding this very run.
        identity: What two processes must share to fill one folder.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity = path, identity

    def claim(self) -> bool:
        """Makes the folder this run's, unless it is another's; returns whether it was not before.

        Raises:
            ValueError: When it holds another run, or other files.
        """
        check_run_folder(self.path)
        file = self.path / SETTINGS
        fresh = not file.exists()
        if fresh:
            self.path.mkdir(exist_ok=True)
            write_atomically(file, json.dumps(self.identity, indent=1).encode())
        try:
            stored = parse_object(read_text(file, "file of settings"), f"'{file}'")
        except ValueError as error:
            raise ValueError(f"'{file}' is damaged: name a new folder.") from error
        mine = json.loads(json.dumps(self.identity))
        different = [key for key in {**mine, **stored} if stored.get(key) != mine.get(key)]
        if different:
            raise ValueError(
                f"'{self.path}' holds another run (its {different[0]} differs): name a new folder, or ask "
                "for the same model, prompts, plan and settings."
            )
        return fresh

    def require_claimed(self) -> None:
        """Checks that this process sees the folder that another one claimed, and that it holds this run.

        Raises:
            ValueError: When it does not.
        """
        if not (self.path / SETTINGS).is_file():
            raise ValueError(
                f"'{self.path}' is not the same folder on every machine: name one on a file system that all "
                "of them share."
            )
        self.claim()

    def release(self) -> None:
        """Makes the folder as it was before the run, unless some process has drawn a picture."""
        manifests = list(self.path.glob(MANIFESTS))
        if any(manifest.stat().st_size for manifest in manifests):
            return
        for manifest in manifests:
            manifest.unlink(missing_ok=True)
        (self.path / SETTINGS).unlink()
        sweep(self.path)
        for place in sorted(self.path.rglob("*"), reverse=True):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def check_pictures(self, manifest: Path, wanted: Collection[str]) -> dict[str, Entry]:
        """Entries by file of the pictures that are whole, whichever process drew them.

        The process's own manifest loses the lines of others, and gains those of wanted pictures that another
        manifest lists: so a run may go on in another number of processes.

        Args:
            manifest: Of this process.
            wanted: Files that this process is to make.
        """
        entries = read_valid(manifest, self.path)
        entries |= self.find(set(wanted) - entries.keys(), manifest)
        write_atomically(manifest, format_entries(entries.values()))
        return entries

    def find(self, files: Collection[str], but: Path | None = None) -> dict[str, Entry]:
        """Entries of those of some files that are whole, by the lines of all manifests.

        Args:
            but: A manifest that is not read.
        """
        left, found = set(files), dict[str, Entry]()
        for manifest in sorted(self.path.glob(MANIFESTS)):
            if left and manifest != but:
                found |= read_valid(manifest, self.path, wanted=left)
                left -= found.keys()
        return found

    def merge(self, wanted: Sequence[str], own: Mapping[str, Entry]) -> int:
        """Writes the whole manifest once all shards are done; returns how many files are missing.

        Args:
            wanted: Files of the whole run, in order.
            own: Entries of this process's shard.
        """
        entries = dict(own)
        if not entries.keys() >= set(wanted):
            for manifest in sorted(self.path.glob(MANIFESTS)):
                entries = {**read_valid(manifest, self.path, checksums=False), **entries}
        missing = [name for name in wanted if name not in entries]
        if not missing:
            write_atomically(self.path / MANIFEST, format_entries(entries[name] for name in wanted))
            # All that a process without others had listed stands there now.
            (self.path / Shard().manifest).unlink(missing_ok=True)
        return len(missing)
