"""The index of a pipeline folder, as diffusers writes and reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers


def write_index(
    folder: Path,
    pipeline: str,
    components: Mapping[str, tuple[str | None, str | None]],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes the index that makes a folder of components a pipeline.

    Args:
        folder: Holds one folder a component.
        pipeline: Class name of the pipeline.
        components: (library, class name) by component; None and None for one that is left out.
        settings: Arguments of the pipeline's constructor that differ from its defaults.
    """
    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        **components,
        **(settings or {}),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def write_folder(
    folder: Path, pipeline: str, components: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Writes a pipeline folder.

    Args:
        folder: An empty folder.
        pipeline: Class name of the pipeline.
        components: Objects with `save_pretrained` by name; None for one that is left out.
        settings: Arguments of the pipeline's constructor that differ from its defaults.
    """
    entries: dict[str, tuple[str | None, str | None]] = {}
    for name, component in components.items():
        entries[name] = (None, None)
        if component is not None:
            component.save_pretrained(folder / name)
            entries[name] = _index_entry(component)
    write_index(folder, pipeline, entries, settings)


def _index_entry(component: Any) -> tuple[str, str]:
    """Library and class of a component, as an index names them."""
    name, library = type(component).__name__, type(component).__module__.partition(".")[0]
    # transformers 5 calls the generic class by a new name; the old one is known to all versions.
    return library, "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name
