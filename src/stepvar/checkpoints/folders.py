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


def save_text_side(
    encoder: Any, tokenizer: Any, folder: Path, suffix: str = ""
) -> dict[str, tuple[str, str]]:
    """Saves a text encoder and its tokenizer in a pipeline folder.

    Args:
        encoder, tokenizer: Of transformers.
        folder: Of the pipeline.
        suffix: Tells the components of several text encoders apart.

    Returns:
        Their entries in the index.
    """
    encoder.save_pretrained(folder / f"text_encoder{suffix}")
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    # transformers 5 calls the generic class by a new name; the old one is known to all versions.
    name = type(tokenizer).__name__
    name = "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name
    return {
        f"text_encoder{suffix}": ("transformers", type(encoder).__name__),
        f"tokenizer{suffix}": ("transformers", name),
    }
