"""Manifest of a run: one line of JSON a picture, with what is needed to check the picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stepvar.evaluation.text_files import parse_object, read_text

MANIFEST, MANIFESTS = "manifest.jsonl", "manifest*.jsonl"

Entry = dict[str, Any]
"""A line: "file", "prompt", "seed", size and so on; "sha256" is that of the picture's file."""

_CHUNK = 2**20
_LONGEST_PART = 255
"""Bytes of one name in a path."""


def format_entries(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """Lines of a manifest."""
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def read_manifest(folder: Path) -> list[Entry]:
    """The lines of a complete run, whose pictures are all there.

    Raises:
        ValueError: When there is none, it is damaged, or the run is not complete.
    """
    file = folder / MANIFEST
    if not file.is_file():
        begun = any(folder.glob(MANIFESTS))
        state = "its run is not finished" if begun else "no run of 'stepvar evaluate' is there"
        raise ValueError(f"'{folder}' has no {MANIFEST}: {state}.")
    lines = [line for line in read_text(file, "manifest").split("\n") if line.strip()]
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        where = f"Line {number} of '{file}'"
        entry = parse_object(line, where)
        problem = _problem(entry)
        if problem is not None:
            raise ValueError(f"{where} {problem}: run 'stepvar evaluate' again.")
        if (folder / entry["file"]).is_file():
            entries[entry["file"]] = entry
    if len(entries) < len(lines) or not entries:
        missing = len(lines) - len(entries)
        raise ValueError(f"'{folder}' lacks {missing} of its {len(lines)} pictures: run it again.")
    return list(entries.values())


def read_valid(
    file: Path, folder: Path, checksums: bool = True, wanted: Container[str] | None = None
) -> dict[str, Entry]:
    """Lines by file, of files that are whole: there, and with the very bytes that were written.

    A line that an interruption cut off is dropped, as is one that is no entry.

    Args:
        checksums: Whether the files are read; otherwise they need only be there and not empty.
        wanted: Files to look at; by default all.
    """
    if not file.is_file():
        return {}
    entries = {}
    for line in file.read_text("utf-8", errors="replace").split("\n"):
        try:
            entry = parse_object(line, "a line")
        except ValueError:
            continue
        if _problem(entry) is not None or (wanted is not None and entry["file"] not in wanted):
            continue
        path = folder / entry["file"]
        whole = is_whole(path, entry.get("sha256")) if checksums else path.is_file() and path.stat().st_size
        if whole:
            entries[entry["file"]] = entry
    return entries


def is_whole(path: Path, checksum: object) -> bool:
    """Whether a file holds the bytes that its checksum is of."""
    return path.is_file() and checksum == file_checksum(path)


def checksum_of(content: bytes) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(content).hexdigest()


def file_checksum(path: Path) -> str:
    """The same, of a file that need not fit into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _problem(entry: Entry) -> str | None:
    """Why a line is no entry of a picture; None where it is one."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "file": str, "prompt": str, "seed": (int, list), "width": int, "height": int, "group": str,
    }  # fmt: skip
    for key, kind in kinds.items():
        if key not in entry and key in ("file", "prompt"):
            return f"has no {key!r}"
        if key in entry and not isinstance(entry[key], kind):
            return f"has a {key!r} of the wrong type"
    file = PurePosixPath(entry["file"])
    if file.is_absolute() or ".." in file.parts or "\0" in str(file) or not _is_encodable(str(file)):
        return "names a file outside the run's folder"
    if any(len(part.encode()) > _LONGEST_PART for part in file.parts):
        return "names a file that no file system holds"
    return None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
