"""Companions of an official transformer in its folder: its visual tokenizer and text encoders."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stepvar.checkpoints.conversion import Conversion
from stepvar.checkpoints.errors import CheckpointError, listing
from stepvar.checkpoints.weights import WEIGHT_SUFFIXES

logger = logging.getLogger(__name__)

_MOST_NEIGHBOURS = 100


@dataclass(frozen=True)
class Companions:
    """Files and folders beside a transformer.

    Attributes:
        vae: A visual tokenizer that fits the model; None for none.
        text_encoders: A folder for every text encoder of the model, in its order; empty unless all are there.
    """

    vae: Path | None
    text_encoders: tuple[Path, ...]


def find_companions(transformer: Path, conversion: Conversion, vae: bool, texts: bool) -> Companions:
    """Looks beside a transformer, and says what it found.

    Args:
        transformer: The official file or folder.
        conversion: How its model is loaded.
        vae, texts: Whether the visual tokenizer and the text encoders are looked for.

    Raises:
        CheckpointError: When several visual tokenizers would do.
    """
    found = [path for path in _neighbours(transformer) if conversion.is_vae(path)] if vae else []
    if len(found) > 1:
        raise CheckpointError(
            f"Beside '{transformer}' lie several visual tokenizers ({listing(path.name for path in found)}): "
            "name one with vae= (--vae)."
        )
    encoders: list[Path] = []
    for side in conversion.text_sides if texts else ():
        folder = transformer.parent / side.published
        if (folder / "config.json").is_file():
            encoders.append(folder)
    complete = tuple(encoders) if len(encoders) == len(conversion.text_sides) else ()
    for path in (*found, *complete):
        logger.warning("'%s': took '%s' beside it.", transformer, path.name)
    return Companions(found[0] if found else None, complete)


def _neighbours(transformer: Path) -> Iterator[Path]:
    """Weight files and folders beside a transformer."""
    for number, path in enumerate(sorted(transformer.absolute().parent.iterdir())):
        if number >= _MOST_NEIGHBOURS:
            return
        if path == transformer.absolute() or path.name.startswith("."):
            continue
        if path.suffix in WEIGHT_SUFFIXES or (path.is_dir() and any(path.glob("*.safetensors"))):
            yield path
