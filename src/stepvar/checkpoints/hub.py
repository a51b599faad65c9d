"""Repositories of the Hugging Face hub as folders: downloaded once, then taken from the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepvar.checkpoints.errors import CheckpointError, first_line

PathLike = str | os.PathLike[str]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")

_TEXTS = ("*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja", "README.md")
"""Configurations, indices and tokenizers: everything in a pipeline's repository but the weights."""

_STEMS = ("model", "diffusion_pytorch_model")


@dataclass(frozen=True)
class HubOptions:
    """How a repository is fetched.

    Attributes:
        revision: Branch, tag or commit; None is the main branch.
        variant: Which weight files, "fp16" for example; None for the plain ones.
        cache_dir: Where it is kept; None is the hub's own cache.
        local_files_only: Whether only the cache is looked at.
        token: For repositories that need one; None takes the stored one.
        force_download: Whether files are fetched again that are in the cache.
    """

    revision: str | None = None
    variant: str | None = None
    cache_dir: PathLike | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    force_download: bool = False


def is_repository(name: PathLike) -> bool:
    """Whether something that is no path of this machine could be a repository: owner/name or
    owner/name@revision."""
    return not Path(name).expanduser().exists() and bool(_REPOSITORY.fullmatch(os.fspath(name)))


def refuse_missing_path(source: object) -> None:
    """Refuses a path where nothing is, before the hub is asked for it.

    Raises:
        ValueError: Naming it; what cannot be a path, or may be a repository, is left alone.
    """
    if not isinstance(source, (str, os.PathLike)):
        return
    name = os.fspath(source)
    if not Path(name).expanduser().exists() and not _REPOSITORY.fullmatch(name):
        raise ValueError(
            f"There is no '{name}': give a folder, a safetensors file or a repository (owner/name)."
        )


def fetch_repository(name: str, options: HubOptions, patterns: Sequence[str] | None = None) -> Path:
    """The folder of a repository's files, fetched where they are not in the cache.

    Args:
        name: owner/name, with @revision behind it or not.
        options: How it is fetched.
        patterns: Files that are wanted; None for those of a pipeline: texts and safetensors, never code or
            pickles.

    Raises:
        CheckpointError: When it cannot be reached or found.
    """
    repository, _, revision = name.partition("@")
    if patterns is not None:
        return _snapshot(repository, revision or options.revision, patterns, options)
    wanted = [*_TEXTS, *_weight_patterns(options.variant)]
    folder = _snapshot(repository, revision or options.revision, wanted, options)
    if options.variant is not None:
        # A component without the variant has plain weights only.
        lacking = [
            config.parent.name for config in folder.glob("*/config.json") if not _has_weights(config.parent)
        ]
        if lacking:
            plain = [f"{part}/{pattern}" for part in lacking for pattern in _file_patterns(None)]
            folder = _snapshot(repository, revision or options.revision, plain, options)
    return folder


def _weight_patterns(variant: str | None) -> list[str]:
    return [f"*/{pattern}" for pattern in _file_patterns(variant)]


def _file_patterns(variant: str | None) -> list[str]:
    """Names of weight files: of one file, and of shards."""
    part = f".{variant}" if variant else ""
    return [f"{stem}{part}{shard}.safetensors" for stem in _STEMS for shard in ("", "-*-of-*")]


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _snapshot(repository: str, revision: str | None, patterns: Sequence[str], options: HubOptions) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            cache_dir=None if options.cache_dir is None else Path(options.cache_dir),
            local_files_only=options.local_files_only,
            token=options.token,
            force_download=options.force_download,
        )
    except (
        Exception
    ) as error:  # the hub's errors, those of the connection and of the disk have no common type
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        raise CheckpointError(
            f"'{repository}' is no folder here, and could not be fetched from the hub "
            f"({type(error).__name__}: {first_line(error)}); check name and connection, or give a folder."
        ) from error
    return Path(folder)


def local_folder(name: PathLike, options: HubOptions) -> Path:
    """A folder as it is, or that of a repository.

    Raises:
        CheckpointError: When a repository cannot be fetched.
    """
    if is_repository(name):
        return fetch_repository(os.fspath(name), options)
    return Path(name).expanduser()
