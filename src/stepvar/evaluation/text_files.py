"""Strict reading of text files: errors name the file, the line and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST_NAME = 240
"""Bytes of a name that becomes a file's: file systems take 255, of which a number and an ending need some."""


def read_text(path: Path, kind: str = "prompts file") -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        kind: What the file should be, for the message.

    Raises:
        ValueError: When there is no such file, or it is no UTF-8 text.
    """
    if not path.is_file():
        raise ValueError(f"There is no {kind} '{path}': name an existing file.")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no UTF-8 text.") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line of a prompts file; empty lines at its end are left out.

    Only line feeds separate lines: other separators that Unicode knows may stand inside a JSON string.

    Raises:
        ValueError: When there is no such file, it is no UTF-8 text, or it is empty.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"'{path}' is empty: it should hold prompts.")
    yield from enumerate(lines, start=1)


def parse_json(text: str, where: str) -> Any:
    """A JSON document; a key that an object has twice is an error, not the last value.

    Args:
        where: Place of the document, for messages.

    Raises:
        ValueError: When it is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError(f"{where} is no JSON that can be read: it is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}).") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:60]!r} is there twice")
            seen.add(key)
    return found


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object; otherwise as `parse_json`."""
    document = parse_json(text, where)
    if not isinstance(document, dict):
        raise ValueError(f"{where} is no JSON object.")
    return document


def require_text(record: dict[str, Any], key: str, where: str) -> str:
    """The text under a key of a record, without space around it.

    Raises:
        ValueError: When there is none, or it holds half a character.
    """
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} has no text under {key!r}.")
    if not _is_unicode(value):
        raise ValueError(f"{where} has text under {key!r} that is not valid Unicode.")
    return value.strip()


def require_file_name(name: str, what: str, where: str) -> str:
    """A name that can be part of a path: one component, on every file system.

    Args:
        what: The name's role, for the message.

    Raises:
        ValueError: When it is empty, `.` or `..`, too long in bytes, or holds a separator, a control
            character or half a character.
    """
    if not _is_unicode(name) or name in ("", ".", ".."):
        problem = "cannot be a file name"
    elif any(character in "/\\" or ord(character) < 32 or ord(character) == 127 for character in name):
        problem = "cannot be a file name: it has a separator or a control character"
    elif len(name.encode()) > LONGEST_NAME:
        problem = f"cannot be a file name: it has {len(name.encode())} bytes, more than {LONGEST_NAME}"
    else:
        return name
    raise ValueError(f"{where} has {what} {name[:60]!r} that {problem}.")


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, which halves of surrogate pairs cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
