"""JSON files of unknown origin, read strictly: finite numbers, no key twice, bounded size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from stepvar.checkpoints.errors import CheckpointError

CONFIG_BYTES = 4 << 20
"""Largest configuration or index of a pipeline; the names of 20,000 classes take a tenth of it."""

INDEX_BYTES = 64 << 20
"""Largest index of shards: a line for each of 500,000 tensors."""

_LARGEST_INTEGER = 2**53


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
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).rstrip(".")
        raise CheckpointError(f"'{file}' is not a readable {kind} ({reason}); fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"'{file}' is not a readable {kind} (it holds a {type(content).__name__}); fetch it again."
        )
    return content


def parse_json(text: str) -> Any:
    """Parses JSON strictly.

    Raises:
        ValueError: When it is not JSON, has a key twice, or a number that is not finite or beyond 2^53.
        RecursionError: When it is nested too deeply.
    """
    return json.loads(
        text,
        object_pairs_hook=_unique_keys,
        parse_constant=_refuse_constant,
        parse_float=_finite_float,
        parse_int=_bounded_integer,
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} is there twice")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _bounded_integer(text: str) -> int:
    # The digits are counted first: converting millions of them takes minutes.
    if len(text) > 20 or abs(int(text)) > _LARGEST_INTEGER:
        raise ValueError(f"the number {text[:20]}... is too large")
    return int(text)
