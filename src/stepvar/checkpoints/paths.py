"""Names and links in a folder of unknown origin: nothing that is read may lie outside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from stepvar.checkpoints.errors import CheckpointError

_HUB_SNAPSHOT = re.compile(r"(.*/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(/.*)?")
"""A folder in the Hugging Face cache, whose files are links to the `blobs` of the same repository."""


def is_plain_name(name: object) -> bool:
    """Whether something names a file of its own folder: no separator, no drive, no control character."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not re.search(r"[/\\:\x00-\x1f\ud800-\udfff]", name)
    )


def require_inside(folder: Path) -> None:
    """Checks every file of a folder that is about to be read.

    Links may lead to other places of the folder, and in a cache of the Hugging Face hub to the files of the
    same repository.

    Raises:
        CheckpointError: When something leads elsewhere, or is neither a file nor a folder, such as a pipe.
    """
    root = folder.resolve()
    roots = [root]
    if snapshot := _HUB_SNAPSHOT.fullmatch(root.as_posix()):
        roots.append(Path(snapshot[1]) / "blobs")
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            _require_below(path, roots)
            if name in files and not path.is_file():
                problem = "is no regular file" if os.path.lexists(path) and path.exists() else "leads nowhere"
                raise CheckpointError(f"'{path}' {problem}; give a folder of plain files.")


def _require_below(path: Path, roots: list[Path]) -> None:
    if not path.is_symlink():
        return
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"'{path}' is a link that leads nowhere; give a folder of plain files."
        ) from error
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"'{path}' is a link to a place outside its folder; do not trust it, or copy the file there."
        )
