"""Conversion of official checkpoints, whatever the model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.checkpoints.components import Reference, load_reference
from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.weights import Checkpoint
from stepvar.models import MODELS, find_spec
from stepvar.models.common.architectures import name_architecture
from stepvar.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]

TEXT_ENCODERS: dict[str, Reference] = {
    class_name: component.loader
    for spec in MODELS
    for component in spec.components.values()
    if component.loader is not None
    for class_name in component.class_names
}
"""Function that loads a text encoder strictly, by the name of its class."""


def convert(
    transformer_path: PathLike,
    tokenizer_path: PathLike,
    text_encoder: PathLike | Sequence[PathLike] | None,
    output_dir: PathLike,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Path:
    """Writes a folder that the model's pipeline loads; which model it is follows from the transformer.

    Args:
        transformer_path: A published file, a folder of shards, a training checkpoint or a saved folder.
        tokenizer_path: The visual tokenizer it was trained with.
        text_encoder: Folder of its text encoder, or several where the model has several; None leaves them
            out.
        output_dir: The new folder.
        dtype: Number format of the transformer; None keeps the file's.
        options: Arguments that only this model's `convert` takes, such as VAR's `labels`.

    Returns:
        The new folder.

    Raises:
        CheckpointError: When an input cannot be used, the inputs do not fit each other, or the folder exists.
        ValueError: When the model has no use for an argument.
    """
    spec = model_of(transformer_path)
    run = load_reference(spec.convert)
    for name in options.keys() - inspect.signature(run).parameters.keys():
        raise ValueError(
            f"'{transformer_path}' is {spec.transformer_title}, which has no {name}: leave it out."
        )
    folder: Path = run(transformer_path, tokenizer_path, text_encoder, output_dir, dtype, **options)
    return folder


def model_of(transformer_path: PathLike) -> ModelSpec:
    """The model that a transformer belongs to, under the official names or ours.

    Raises:
        CheckpointError: When the file is missing, damaged, not a checkpoint or of none of them.
    """
    routes = [route for spec in MODELS for route in spec.routes]
    layout = Checkpoint.open(transformer_path, routes).layout
    spec = find_spec(layout)
    if spec is None:
        first = ", ".join(list(layout)[:3])
        found = name_architecture(layout) or f"nothing that stepvar knows (its first keys are {first})"
        known = ", ".join(entry.transformer_title for entry in MODELS)
        raise CheckpointError(f"'{transformer_path}' holds {found}; a transformer is needed: {known}.")
    return spec
