"""Checkpoints: the weights of one file or several shards, by name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError, listing
from stepvar.checkpoints.json_files import INDEX_BYTES, read_json
from stepvar.checkpoints.paths import is_plain_name
from stepvar.checkpoints.reading import USABLE, read_content, require_state_dict
from stepvar.checkpoints.wrappers import Routes, find_state, strip_wrappers

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
TensorMap = dict[str, Tensor]

_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<of_file>[A-Za-z]\w*)(?:-\d+-of-\d+)?)?\.(?:safetensors|bin)(?:\.index(?:\.(?P<of_index>\w+))?\.json)?"
)
"""Names of the files that diffusers and transformers write."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """Weights in one file or in several shards.

    Attributes:
        path: What was asked for, a file or a folder.
        files: The files that hold the weights.
        routes: Where inside a file the state dict may lie, see `read_tensors`.
        layout: Name -> tensor on the meta device: shapes and number formats of everything stored.
        names: Name in the files -> name without what training wrapped around it.
        states: Size, time and place on the disk of every file when it was opened.
    """

    path: Path
    files: tuple[Path, ...]
    routes: Routes
    layout: Mapping[str, Tensor]
    names: Mapping[str, str]
    states: tuple[tuple[int, int, int], ...]

    @classmethod
    def open(
        cls, path: PathLike, routes: Routes = (), unwrap: bool = True, variant: str | None = None
    ) -> Checkpoint:
        """Finds the files and reads names and shapes, not the weights.

        Args:
            path: A file, or a folder with one weight file or a shard index.
            routes: Keys to the state dict in files of training, see `read_tensors`.
            unwrap: Whether prefixes of DDP, FSDP and compile are stripped off the names.
            variant: Of a folder's weight files, those with this in their names, "fp16" for example.

        Raises:
            CheckpointError: When something is missing, damaged or not a checkpoint.
        """
        path = Path(path).expanduser()
        files = weight_files(path, variant)
        states = tuple(map(_file_state, files))
        stored: TensorMap = {}
        for file in files:
            tensors = read_tensors(file, routes)
            twice = stored.keys() & tensors.keys()
            if twice:
                raise CheckpointError(f"'{path}' stores {listing(twice)} in two shards; fetch it again.")
            stored.update({key: tensor.to("meta") for key, tensor in tensors.items()})
        if any(name.rpartition(".")[2] in ("_flat_param", "flat_param") for name in stored):
            raise CheckpointError(
                f"'{path}' was saved by FSDP in flat form, which has lost names and shapes; save it with "
                "StateDictType.FULL_STATE_DICT."
            )
        names, prefixes = strip_wrappers(list(stored)) if unwrap else ({name: name for name in stored}, ())
        if prefixes:
            logger.warning("'%s': left %s out of the names of its weights.", path, ", ".join(prefixes))
        layout = {names[name]: tensor for name, tensor in stored.items()}
        return cls(path, tuple(files), tuple(tuple(route) for route in routes), layout, names, states)

    @property
    def nbytes(self) -> int:
        """Bytes that all weights take."""
        return sum(tensor.nbytes for tensor in self.layout.values())

    def shards(self) -> Iterator[TensorMap]:
        """The tensors of one file after the other, mapped into memory where the format allows it.

        Raises:
            CheckpointError: When a file is no longer the one that was opened.
        """
        for file in self.files:
            tensors = read_tensors(file, self.routes)
            self.require_unchanged()
            yield {self.names[name]: tensor for name, tensor in tensors.items()}
        self.require_unchanged()

    def require_unchanged(self) -> None:
        """Raises `CheckpointError` when a file was written since it was opened."""
        for file, state in zip(self.files, self.states, strict=True):
            if _file_state(file) != state:
                raise CheckpointError(
                    f"'{file}' was changed while it was read; try again when it is complete."
                )


def _file_state(file: Path) -> tuple[int, int, int]:
    try:
        state = file.stat()
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}.") from error
    return state.st_size, state.st_mtime_ns, state.st_ino


def weight_files(path: Path, variant: str | None = None) -> list[Path]:
    """The files that hold the weights of a checkpoint: itself, or the shards of a folder.

    Args:
        path: A file or a folder.
        variant: Of several files in a folder, those that are called so, as in model.fp16.safetensors; None
            for the plain ones.

    Raises:
        CheckpointError: When there is nothing to read.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise CheckpointError(f"There is no file or folder '{path}'; {USABLE}.")
    if not path.is_dir():
        raise CheckpointError(f"'{path}' is neither a file nor a folder; {USABLE}.")
    for pattern in ("*.safetensors.index*.json", "*.index*.json"):
        indices = _of_variant(sorted(path.glob(pattern)), variant)
        if indices and (variant is not None or _variant(indices[0]) is None or not _plain_file(path)):
            return _shards_of(indices[0])
    for suffixes in ((".safetensors",), WEIGHT_SUFFIXES):
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
        found = _of_variant(found, variant)
        if len(found) == 1:
            return found
        if found:
            names = listing(file.name for file in found)
            raise CheckpointError(f"'{path}' has {names} but no shard index; give the path of one file.")
    parts = [child.parent.name for child in sorted(path.glob("*/config.json"))]
    hint = f"give one of its folders {listing(parts)}" if parts else USABLE
    raise CheckpointError(f"The folder '{path}' contains no weights; {hint}.")


def _variant(file: Path) -> str | None:
    """What stands between the name of a weight file and its ending: "fp16" of model.fp16.safetensors."""
    match = _VARIANT.fullmatch(file.name)
    return match and (match["of_file"] or match["of_index"])


def _of_variant(files: list[Path], variant: str | None) -> list[Path]:
    """The files of a variant among several; the plain ones where there is none of it."""
    if variant is not None and (found := [file for file in files if _variant(file) == variant]):
        return found
    if len(files) > 1:
        files = [file for file in files if _variant(file) is None] or files
        # Averaged weights beside the plain ones are read by those who ask for them by name.
        files = [file for file in files if not file.name.startswith("ema_")] or files
    return files


def _plain_file(folder: Path) -> bool:
    """Whether a folder has a weight file that is no shard and of no variant."""
    return any(file.suffix == ".safetensors" and _variant(file) is None for file in folder.iterdir())


def variants(folder: Path) -> set[str]:
    """Names of the variants that a component's folder has weights of."""
    return {name for file in folder.iterdir() if (name := _variant(file)) is not None}


def _shards_of(index: Path) -> list[Path]:
    weight_map = read_json(index, "shard index", INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"'{index}' is not a readable shard index; fetch it again.")
    names = sorted(set(weight_map.values()))
    # A name with a path in it could make us read any file of this machine.
    outside = [name for name in names if not is_plain_name(name)]
    if outside:
        raise CheckpointError(f"'{index}' points outside its folder to {outside[0]!r}; do not trust it.")
    if not names:
        raise CheckpointError(f"'{index}' lists no shards; fetch it again.")
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"'{index.parent}' lacks {len(missing)} of its {len(files)} shards ({listing(missing)}); "
            "fetch the missing files."
        )
    return files


def read_tensors(file: Path, routes: Routes = ()) -> TensorMap:
    """Reads the state dict of one file.

    Args:
        file: A PyTorch or safetensors file.
        routes: Keys to follow to the state dict inside, e.g. ``[("trainer", "gpt_fsdp")]``; the first
            route that exists is taken, then the keys that training scripts commonly use.

    Returns:
        Name -> tensor on the CPU, in the number format of the file.

    Raises:
        CheckpointError: When the file is damaged, executable, or holds anything but tensors there.
    """
    content = read_content(file)
    state, taken = find_state(content, routes)
    if taken and taken not in map(tuple, routes):
        _report_nesting(file, taken)
    return dict(require_state_dict(state, file))


@lru_cache(maxsize=64)
def _report_nesting(file: Path, taken: tuple[str, ...]) -> None:
    """Says once what was read of a file: names, shapes and weights are read one after the other."""
    logger.warning("'%s': read its %s, and nothing else.", file, " / ".join(taken))
