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
