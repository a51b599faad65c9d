"""Content of a weight file of unknown origin: nothing in it is executed, and it costs what it holds.

PyTorch files are opened with `weights_only=True` after a look at their archive and pickles, safetensors files
by their own reader. Both are mapped into memory rather than copied: who keeps tensors copies them, since a
file that is written over while it is mapped would change them.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stepvar.checkpoints.archives import require_plain_archive, require_plain_pickle
from stepvar.checkpoints.errors import CheckpointError, listing

USABLE = "give a .safetensors file, a PyTorch file of plain tensors, or a folder with a shard index"

_IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'",
    b"GGUF": f"is a GGUF file, which is not supported; {USABLE}",
    b"<": "is a web page, not a checkpoint; the download probably failed, so fetch the file again",
}
"""What the first bytes of files that are often mistaken for weights say about them."""

_SHARED_TWICE = 2
"""How often the same bytes of a file may be read: weights that are tied are stored once and named twice."""

_SMALL = 1 << 20


def read_content(file: Path) -> Any:
    """What a PyTorch or safetensors file holds.

    Raises:
        CheckpointError: When it is no such file, damaged, executable, or promises more than it holds.
    """
    head = _head(file)
    # A safetensors file starts with the length of its header, which may look like any other character.
    is_safetensors = head[4:9] == b"\0\0\0\0{"
    for start, problem in _IMPOSTORS.items():
        if head.lstrip().startswith(start) and not is_safetensors:
            raise CheckpointError(f"'{file}' {problem}.")
    if is_safetensors or file.suffix == ".safetensors":
        try:
            content = load_file(file)
            _require_single_names(file, len(content))
            return content
        except CheckpointError:
            raise
        except Exception as error:  # besides its own type, whatever a damaged header leads to
            raise CheckpointError(f"'{file}' is truncated or damaged ({error}); fetch it again.") from error
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"'{file}' is not a checkpoint; {USABLE}.")
    return _read_pytorch(file, is_archive=head.startswith(b"PK"))


def _require_single_names(file: Path, tensors: int) -> None:
    """Refuses a header that has a name twice: readers differ in which of the two they take."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = len(re.findall(rb'"data_offsets"\s*:\s*\[', stream.read(length)))
    if entries > tensors:
        raise CheckpointError(
            f"'{file}' has {entries} entries of {tensors} names: a name is there twice; fetch it again."
        )


def _head(file: Path) -> bytes:
    try:
        # A pipe would wait for a writer that never comes.
        if not stat.S_ISREG(file.stat().st_mode):
            raise CheckpointError(f"'{file}' is no regular file; {USABLE}.")
        with file.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"'{file}' is empty; fetch it again.")
    return head


def _read_pytorch(file: Path, is_archive: bool) -> Any:
    (require_plain_archive if is_archive else require_plain_pickle)(file)
    try:
        # Files in the format before PyTorch 1.6 are no archives and cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # the reader's own errors have no common type
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise CheckpointError(
                f"'{file}' contains Python code or objects ({named[1]}), which were not executed; "
                "give a file with nothing but tensors, best .safetensors."
            ) from error
        # The list of contents is at the end of an archive, so a cut one is not even recognised as such.
        is_cut = not zipfile.is_zipfile(file) if is_archive else "unexpected EOF" in str(error)
        if is_cut or isinstance(error, EOFError):
            raise CheckpointError(f"'{file}' is truncated or damaged; fetch it again.") from error
        raise CheckpointError(f"'{file}' is not a checkpoint; {USABLE}.") from error


def require_state_dict(state: Any, file: Path) -> Mapping[str, Tensor]:
    """Checks that something maps names to plain tensors that the file justifies.

    Raises:
        CheckpointError: Naming what is none, or when tensors share memory beyond what models do.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"'{file}' holds a {type(state).__name__}, not a state dict; {USABLE}.")
    if not state:
        raise CheckpointError(f"'{file}' holds no tensors; {USABLE}.")
    others = [str(key) for key, value in state.items() if not (isinstance(key, str) and _is_dense(value))]
    if others:
        raise CheckpointError(
            f"'{file}' is not a plain state dict ({listing(others)} is no named tensor); "
            "save the state dict alone."
        )
    needed, held = sum(value.nbytes for value in state.values()), file.stat().st_size
    if needed > _SHARED_TWICE * held + _SMALL:
        raise CheckpointError(
            f"The tensors of '{file}' share memory: they need {needed} bytes, and the file holds {held}; "
            "do not trust it."
        )
    return state


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
    )
