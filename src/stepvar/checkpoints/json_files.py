"""JSON files of unknown origin, read strictly: finite numbers, no key twice, bounded size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepvar.checkpoints.errors import CheckpointError

CONFIG_BYTES = 4 << 20
"""Largest configuration or index of a pipeline; the names of 20,000 classes take a tenth of it."""

INDEX_BYTES = 64 << 20
"""Largest index of shards: a line for each of 500,000 tensors."""

_MOST_DIGITS = 40
"""Of an integer; tokenizers write 10^30 for "no limit"."""


def read_json(file: Path, kind: str = "configuration", largest: int = CONFIG_BYTES) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        file: The file.
        kind: What errors call it.
        largest: Bytes it may have.

    Raises:
        CheckpointError: When it is missing, too large, not one JSON object in UTF-8, has a key twice, or a
            number that is not finite.
    """
    try:
        size = file.stat().st_size
        if size > largest:
            raise CheckpointError(f"'{file}' has {size} bytes, too many for a {kind}; do not trust it.")
        content = parse_json(file.read_text("utf-8"))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).rstrip(".")
        raise CheckpointError(f"'{file}' is not a readable {kind} ({reason}); fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"'{file}' is not a readable {kind} (it holds a {type(content).__name__}); fetch it again."
        )
    return content


def parse_json(text: str) -> Any:
    """Parses JSON strictly.

    Raises:
        ValueError: When it is not JSON, has a key twice, or a number that is not finite or too long.
        RecursionError: When it is nested too deeply.
    """
    content = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_bounded_integer)
    for name, value in _numbers(content, "the value"):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}, not a finite number")
    return content


def _numbers(content: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every fraction in a document, with the key that leads to it."""
    if isinstance(content, float):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _numbers(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, name)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(names) if key in names[:place])
        raise ValueError(f"the key {twice!r} is there twice")
    return content


def _bounded_integer(text: str) -> int:
    # Converting millions of digits takes minutes.
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"the number {text[:20]}... is too large")
    return int(text)
