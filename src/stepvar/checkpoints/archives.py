"""PyTorch files before they are unpickled: sizes that the file justifies, and no code.

`torch.load(weights_only=True)` executes nothing foreign, yet it inflates compressed members, and a few of the
names it allows, such as `bytearray`, allocate whatever the pickle asks for.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

from stepvar.checkpoints.errors import CheckpointError

_LEGACY_PICKLES = 5
"""Pickles at the start of a file in the format before PyTorch 1.6: number, version, system, content, keys."""

_ALLOWED = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|sparse_tensor|qtensor)"
    r"|torch\._utils _rebuild_(parameter|parameter_with_state)"
    r"|torch\.serialization _get_layout"
    r"|torch (Size|device|Tensor|\w+Storage|per_\w+)"
    r"|torch (u?int\d+|b?float\d+\w*|complex\d+|bool|q?u?int\d+|double|half|long|short)"
    r"|torch\.storage \w+Storage"
    r"|torch\.nn\.parameter Parameter"
    r"|(__builtin__|builtins) (set|complex)"
    r"|_codecs encode"
)
"""Names that a pickle of tensors refers to and that cost nothing but what the file holds."""


def require_plain_archive(file: Path) -> None:
    """Checks the list of members of a zip archive.

    Raises:
        CheckpointError: When members are compressed, overlap, or promise more bytes than the file has.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.endswith(".pkl")]
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CheckpointError(
                    f"'{file}' is a compressed archive, which no PyTorch file is; do not trust it."
                )
            promised = sum(max(member.file_size, member.compress_size) for member in members)
            if promised > file.stat().st_size or len({member.filename for member in members}) < len(members):
                raise CheckpointError(
                    f"'{file}' promises {promised} bytes, more than it holds; do not trust it."
                )
            for member in pickles:
                with archive.open(member) as stream:
                    _require_tensors_only(file, stream, 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"'{file}' is truncated or damaged; fetch it again.") from error


def require_plain_pickle(file: Path) -> None:
    """Checks the pickles of a file in the format before PyTorch 1.6.

    Raises:
        CheckpointError: When they refer to anything but tensors.
    """
    with file.open("rb") as stream:
        _require_tensors_only(file, stream, _LEGACY_PICKLES)


def _require_tensors_only(file: Path, stream: IO[bytes], pickles: int) -> None:
    """Reads the instructions of pickles without carrying them out."""
    try:
        for _ in range(pickles):
            for opcode, argument, _place in pickletools.genops(stream):
                # Only these two name something by themselves; torch refuses what builds names on a stack.
                if opcode.name in ("GLOBAL", "INST") and not _ALLOWED.fullmatch(str(argument)):
                    name = str(argument).replace(" ", ".")
                    raise CheckpointError(
                        f"'{file}' contains Python code or objects ({name}), which were "
                        "not executed; give a file with nothing but tensors, best .safetensors."
                    )
    except CheckpointError:
        raise
    except Exception:
        # No pickle, or a cut one: the reader says so in its own words.
        return
