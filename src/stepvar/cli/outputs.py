"""Where pictures go: names, checks before any work, files that appear only when they are whole."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.cli.errors import InputError
from stepvar.cli.interrupts import CleanupOnInterrupt

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIX = ".png"
VIDEO_SUFFIXES = (".mp4", ".gif")
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Destination:
    """Where the pictures of one command go.

    Attributes:
        folder: The folder; it may be new, but not its parent.
        stem: Name of the file without its ending; None names each file by its picture.
        suffix: Ending of the files, as it was typed; empty where each is a folder of its own.
    """

    folder: Path
    stem: str | None = None
    suffix: str = SUFFIX

    @classmethod
    def parse(cls, output: Path | None, suffixes: Sequence[str] = (SUFFIX,)) -> Destination:
        """Reads -o, and checks before any work that it can be written to.

        Args:
            suffixes: Endings that a file may have; the first one is that of files in a folder.

        Raises:
            InputError: When it cannot.
        """
        if output is None:
            destination = cls(Path(), suffix=suffixes[0])
        elif output.is_dir():
            destination = cls(output, suffix=suffixes[0])
        elif output.suffix.lower() in suffixes and output.suffix:
            destination = cls(output.parent, output.name[: -len(output.suffix)], output.suffix)
        elif output.suffix or output.exists():
            known = " or ".join(filter(None, suffixes))
            raise InputError(
                f"'{output}' is no {known} file: name one, or a folder."
                if known
                else f"'{output}' is the name of a file: name a folder for the frames."
            )
        else:
            destination = cls(output, suffix=suffixes[0])
        destination._check(output)
        return destination

    @property
    def kind(self) -> str:
        """The ending that tells what is written, however it was typed."""
        return self.suffix.lower()

    def _check(self, output: Path | None) -> None:
        folder = self.folder if self.folder.exists() else self.folder.parent
        if not folder.is_dir():
            raise InputError(f"There is no folder '{folder}' to write '{output}' to: create it first.")
        if not os.access(folder, os.W_OK | os.X_OK):
            shown = "The current folder" if output is None else f"'{folder}'"
            raise InputError(f"{shown} cannot be written to: name another place with -o.")
        target = None if self.stem is None else self.folder / f"{self.stem}{self.suffix}"
        if target is not None and target.exists() and not target.is_file():
            raise InputError(f"'{target}' exists and is no ordinary file: name another place with -o.")

    def names(self, suggestions: list[str]) -> list[Path]:
        """One path a picture; asked-for names are used as they are, suggested ones never overwrite a file."""
        if self.stem is not None:
            if len(suggestions) == 1:
                return [self.folder / f"{self.stem}{self.suffix}"]
            width = len(str(len(suggestions)))
            numbers = range(1, len(suggestions) + 1)
            return [self.folder / f"{self.stem}-{number:0{width}}{self.suffix}" for number in numbers]
        paths: list[Path] = []
        for suggestion in suggestions:
            paths.append(_free_path(self.folder, suggestion, self.suffix, paths))
        return paths


def _free_path(folder: Path, name: str, suffix: str, taken: Collection[Path]) -> Path:
    path, number = folder / f"{name}{suffix}", 1
    while path in taken or path.exists():
        number += 1
        path = folder / f"{name}-{number}{suffix}"
    return path


def slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:_LONGEST_NAME].rstrip("-") or "picture"


def encode_png(image: Image, settings: Mapping[str, Any]) -> bytes:
    """A picture as PNG that carries its settings as JSON under "stepvar"."""
    from PIL.PngImagePlugin import PngInfo

    metadata = PngInfo()
    metadata.add_text("stepvar", json.dumps(settings))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=metadata)
    return buffer.getvalue()


def encode_media(
    drawn: Image | Sequence[Image], path: Path, settings: Mapping[str, Any], frames_per_second: float
) -> dict[Path, bytes]:
    """A picture, or a video as its path's ending says, by file; without ending it is a folder of frames."""
    if not isinstance(drawn, Sequence):
        return {path: encode_png(drawn, settings)}
    if path.suffix.lower() == SUFFIX:
        return {path: encode_png(drawn[0], settings)}
    if not path.suffix:
        return {
            path / f"{number:04}{SUFFIX}": encode_png(frame, settings) for number, frame in enumerate(drawn)
        }
    from stepvar.media.video import Video, encode_video

    return {path: encode_video(Video(drawn, frames_per_second), path.suffix, json.dumps(settings))}


def versions() -> dict[str, str]:
    """Versions that a picture may depend on."""
    from stepvar.evaluation.provenance import versions as told

    return told()


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Writes files that get their names only when all of them are whole.

    Raises:
        OSError: When one cannot be written; then none is.
    """
    staged: dict[Path, Path] = {}
    new_folders: list[Path] = []
    with CleanupOnInterrupt():
        try:
            for index, (path, content) in enumerate(contents.items()):
                for folder in reversed([path.parent, *path.parent.parents]):
                    if not folder.exists():
                        folder.mkdir()
                        new_folders.append(folder)
                partial = path.parent / f".stepvar-{os.getpid()}-{index}.partial"
                staged[path] = partial
                _write(partial, path, content)
            for path, partial in staged.items():
                partial.replace(path)
        except BaseException:
            for partial in staged.values():
                partial.unlink(missing_ok=True)
            for folder in reversed(new_folders):
                folder.rmdir()
            raise


def _write(partial: Path, path: Path, content: bytes) -> None:
    try:
        partial.write_bytes(content)
    except OSError as error:
        # The user knows the file by its final name.
        raise OSError(error.errno, error.strerror, str(path)) from error
