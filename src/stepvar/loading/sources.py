"""Names of models as a user writes them: paths of this machine, and files of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.hub import HubOptions, PathLike, fetch_repository, is_repository
from stepvar.checkpoints.weights import WEIGHT_SUFFIXES

_FILE_OF_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+))?/([\w./-]+)")

_PARTS = ("*.json", "*.txt", "*.model", "*.safetensors", "*.index.json")
"""Files of a component: a text encoder with its tokenizer, or the shards of a transformer."""


def local_path(name: PathLike, options: HubOptions) -> Path:
    """A path as it is, or the file or folder of a repository.

    Args:
        name: A path; or owner/name for a whole repository, owner/name/file or owner/name/folder for a part of
            one, with @revision behind the name or not.
        options: How it is fetched.

    Raises:
        CheckpointError: When a repository cannot be fetched, or has no such file.
    """
    path, text = Path(name).expanduser(), os.fspath(name)
    if path.exists():
        return path
    if is_repository(text):
        return fetch_repository(text, options, _PARTS)
    part = _FILE_OF_REPOSITORY.fullmatch(text)
    # What begins like a path of this machine, or lies in a folder that is here, is a mistyped path.
    if part is None or ".." in text or Path(text.partition("/")[0]).exists():
        return path
    repository, revision, inside = part.groups()
    options = options if revision is None else replace(options, revision=revision)
    patterns = [inside] if inside.endswith(WEIGHT_SUFFIXES) else [f"{inside}/{entry}" for entry in _PARTS]
    found = fetch_repository(repository, options, patterns) / inside
    if not found.exists():
        raise CheckpointError(f"The repository '{repository}' has no {inside!r}: look at its list of files.")
    return found
