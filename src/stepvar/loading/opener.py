"""One opener for everything that holds a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.hub import HubOptions, PathLike, is_repository, local_folder
from stepvar.checkpoints.lock import LOADING
from stepvar.checkpoints.pipeline_folder import INDEX, PipelineFolder
from stepvar.loading.companions import find_companions
from stepvar.loading.conversion import as_list, conversion_of, model_of
from stepvar.loading.sources import local_path
from stepvar.models import MODELS
from stepvar.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from stepvar.models.pipeline import NextScalePipeline


def load(
    source: PathLike,
    *,
    vae: PathLike | None = None,
    text_encoder: PathLike | Sequence[PathLike] | None = None,
    dtype: torch.dtype | None = None,
    kind: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **options: Any,
) -> NextScalePipeline:
    """Opens a model, whatever it is stored as.

    Args:
        source: A folder that `stepvar convert` or `save_pretrained` wrote; a repository of the hub with one,
            as owner/name or owner/name@revision; or an official transformer: a file, a folder of shards, a
            training checkpoint, or owner/name/file of the hub.
        vae: The visual tokenizer of an official transformer; None looks beside it.
        text_encoder: Its text encoder's folder, or several; None looks beside it, and leaves them out where
            there is none.
        dtype: Number format; float32 by default.
        kind: Which model an official transformer is, where its weights do not tell: "varedit" for VAREdit,
            whose transformers have Infinity's names and shapes.
        revision, variant, cache_dir, local_files_only, token: How a repository is fetched, as in diffusers.
        options: For a pipeline folder as for `from_pretrained`; for an official transformer what only its
            model takes, such as VAR's `labels` or InfinityStar's `resolution`.

    Returns:
        The pipeline, on the CPU.

    Raises:
        CheckpointError: When something is missing, damaged, executable, not finite, or does not fit.
        ValueError: When an argument means nothing here.
    """
    hub = HubOptions(revision, variant, cache_dir, local_files_only, token)
    whole = is_repository(source)
    path = local_folder(source, hub) if whole else local_path(source, hub)
    if whole and not (path / INDEX).is_file():
        raise CheckpointError(
            f"'{os.fspath(source)}' is no pipeline's repository (it has no {INDEX}): name one of its files, "
            f"as {os.fspath(source)}/FILE."
        )
    if path.is_dir() and ((path / INDEX).is_file() or not _has_weights(path)):
        if vae is not None or text_encoder is not None or kind is not None:
            raise ValueError(f"'{path}' is a whole pipeline: leave vae, text_encoder and kind out.")
        opened = PipelineFolder.open(path, variant)
        pipeline = spec_of(opened).pipeline_class.from_pretrained(
            path, dtype=dtype, variant=variant, **options
        )
        pipeline.register_to_config(_name_or_path=os.fspath(source))
        return pipeline
    return _assemble(path, vae, as_list(text_encoder), dtype, hub, kind, options)


def _has_weights(path: Path) -> bool:
    """Whether a folder without an index of a pipeline could be an official transformer."""
    return any(path.glob("*.safetensors")) or any(path.glob("*.bin")) or any(path.glob("*.pth"))


def spec_of(opened: PipelineFolder) -> ModelSpec:
    """The model of a pipeline folder.

    Raises:
        CheckpointError: When it is none of them.
    """
    spec = next((entry for entry in MODELS if entry.pipeline_name == opened.pipeline_name), None)
    if spec is None:
        known = ", ".join(entry.pipeline_name for entry in MODELS)
        raise CheckpointError(
            f"'{opened.path}' holds a {opened.pipeline_name!r}; known pipelines are {known}."
        )
    return spec


def _assemble(
    path: Path,
    vae: PathLike | None,
    encoders: Sequence[PathLike],
    dtype: torch.dtype | None,
    hub: HubOptions,
    kind: str | None,
    options: dict[str, Any],
) -> NextScalePipeline:
    """A pipeline of an official transformer and what belongs to it."""
    import torch

    try:
        spec = model_of(path, kind)
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(error).rstrip('.')}; or give a folder with a {INDEX}, which 'stepvar convert' and "
            "save_pretrained write."
        ) from error
    conversion = conversion_of(path, options, kind)
    companions = find_companions(path, conversion, vae is None, not encoders)
    if vae is None and companions.vae is None:
        raise CheckpointError(
            f"'{path}' is {spec.transformer_title}, which draws codes of a visual tokenizer: name that with "
            "vae= (--vae), put it beside the file, or write a folder of both with 'stepvar convert'."
        )
    chosen = companions.vae if vae is None else local_path(vae, hub)
    texts = [local_path(encoder, hub) for encoder in encoders] or list(companions.text_encoders)
    assert chosen is not None
    with LOADING:
        parts = conversion.load(path, chosen, texts, dtype or torch.float32, **options)
        pipeline = spec.pipeline_class(**parts.components, **parts.settings)
        pipeline.check_loaded()
    pipeline.register_to_config(_name_or_path=str(path))
    return pipeline
