"""Prompts files: on this machine, or of a data set on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from stepvar.evaluation.text_files import read_lines

_ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(.+))?")
_ENDINGS = (".jsonl", ".json", ".csv", ".txt")


def find_prompts(source: Path, own_file: str) -> Path:
    """A benchmark's prompts on this machine, downloaded where a data set on the hub is named.

    Args:
        source: A file or folder. Where there is none of that name: `org/name:path/in/it`, or `org/name` for
            the file as the benchmark itself calls it.
        own_file: Name of that file in a data set.

    Raises:
        ValueError: When a data set is named that has no such file, or that cannot be read.
    """
    named = None if source.exists() else _ON_HUB.fullmatch(source.as_posix())
    # A mistyped path looks like a data set too.
    if named is None or (named[2] is None and source.suffix in _ENDINGS):
        return source
    return _download(named[1], named[2] or own_file)


def _download(data_set: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(data_set, file, repo_type="dataset"))
    except Exception as error:  # the library passes on those of whatever it reaches the hub with
        raise ValueError(
            f"There is no file or folder '{data_set}', and the data set '{data_set}' cannot be read: "
            f"{_explain_download(error, data_set, file)}."
        ) from error


def _explain_download(error: Exception, data_set: str, file: str) -> str:
    from huggingface_hub import utils

    if isinstance(error, utils.LocalEntryNotFoundError):
        return f"the hub was not reached, and '{file}' was not downloaded before"
    if isinstance(error, utils.EntryNotFoundError):
        return f"it has no file '{file}', name one as {data_set}:PATH"
    if isinstance(error, utils.RepositoryNotFoundError):
        return "the hub has none of that name, or not for you"
    return f"{type(error).__name__}: {error}"


def load_lines(path: Path) -> list[str]:
    """Prompts of a text file, one a line.

    Raises:
        ValueError: When the file cannot be read, or a line is empty; names the line by number.
    """
    prompts = []
    for number, line in read_lines(path):
        if not line.strip():
            raise ValueError(f"Line {number} of '{path}' is empty: remove it, or write a prompt.")
        prompts.append(line.strip())
    return prompts
