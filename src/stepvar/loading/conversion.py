"""Conversion of official checkpoints, whatever the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.checkpoints.components import load_reference
from stepvar.checkpoints.conversion import Conversion
from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.hub import HubOptions
from stepvar.checkpoints.weights import Checkpoint
from stepvar.loading.sources import local_path
from stepvar.models import MODELS, find_spec
from stepvar.models.common.architectures import name_architecture
from stepvar.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]


def convert(
    transformer_path: PathLike,
    tokenizer_path: PathLike,
    text_encoder: PathLike | Sequence[PathLike] | None,
    output_dir: PathLike,
    dtype: torch.dtype | None = None,
    kind: str | None = None,
    **options: Any,
) -> Path:
    """Writes a folder that the model's pipeline loads; which model it is follows from the transformer.

    Args:
        transformer_path: A published file, a folder of shards, a training checkpoint or a saved folder; or
            one of these on the hub, as owner/name or owner/name/file.
        tokenizer_path: The visual tokenizer it was trained with.
        text_encoder: Folder of its text encoder, or several where the model has several; None leaves them
            out.
        output_dir: The new folder.
        dtype: Number format of the transformer; None keeps the file's.
        kind: Which model it is, where weights do not tell: "varedit" for VAREdit, whose transformers have
            Infinity's names and shapes.
        options: Arguments that only this model's `convert` takes, such as VAR's `labels`.

    Returns:
        The new folder.

    Raises:
        CheckpointError: When an input cannot be used, the inputs do not fit each other, or the folder exists.
        ValueError: When the model has no use for an argument.
    """
    hub = HubOptions()
    transformer = local_path(transformer_path, hub)
    conversion = conversion_of(transformer, options, kind)
    encoders = [local_path(path, hub) for path in as_list(text_encoder)]
    return conversion(transformer, local_path(tokenizer_path, hub), encoders, output_dir, dtype, **options)


def as_list(paths: PathLike | Sequence[PathLike] | None) -> list[PathLike]:
    """One path, several or none, as a list."""
    if paths is None:
        return []
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def conversion_of(transformer: Path, options: dict[str, Any], kind: str | None = None) -> Conversion:
    """The conversion of the model that a transformer belongs to.

    Raises:
        CheckpointError: As for `model_of`.
        ValueError: When the model has no use for an option, or is not of the kind that was asked for.
    """
    spec = model_of(transformer, kind)
    conversion: Conversion = load_reference(spec.convert)
    for name in options.keys() - set(conversion.options):
        raise ValueError(f"'{transformer}' is {spec.transformer_title}, which has no {name}: leave it out.")
    return conversion


def model_of(transformer_path: PathLike, kind: str | None = None) -> ModelSpec:
    """The model that a transformer belongs to, under the official names or ours.

    Args:
        transformer_path: A file or folder.
        kind: See `find_spec`.

    Raises:
        CheckpointError: When the file is missing, damaged, not a checkpoint or of none of them.
        ValueError: When it is not of the kind that was asked for.
    """
    routes = [route for spec in MODELS for route in spec.routes]
    layout = Checkpoint.open(transformer_path, routes).layout
    spec = find_spec(layout, kind)
    if spec is None:
        first = ", ".join(list(layout)[:3])
        found = name_architecture(layout) or f"nothing that stepvar knows (its first keys are {first})"
        known = ", ".join(entry.transformer_title for entry in MODELS)
        raise CheckpointError(f"'{transformer_path}' holds {found}; a transformer is needed: {known}.")
    return spec
