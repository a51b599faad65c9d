"""Output files of commands: their names, checks before any work, encoding, writing all of them or none."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.cli.errors import InputError
from stepvar.cli.interrupts import CleanupOnInterrupt

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIX = ".png"
_SHEET_SUFFIXES = (SUFFIX, ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4", ".gif")


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
        """The ending that says what is written, however it was typed."""
        return self.suffix.lower()

    def _check(self, output: Path | None) -> None:
        folder = self.folder if self.folder.exists() else self.folder.parent
        if not folder.is_dir():
            raise InputError(f"There is no folder '{folder}' to write '{output}' to: create it first.")
        if not os.access(folder, os.W_OK | os.X_OK):
            shown = "The current folder" if output is None else f"'{folder}'"
            raise InputError(f"{shown} cannot be written to: name another place with -o.")

    def check_names(self, number: int, inputs: Iterable[Path | None] = ()) -> None:
        """Checks, before any work, the files that names which were asked for would replace.

        Args:
            number: How many files there will be.
            inputs: Files that the command reads.

        Raises:
            InputError: When something else than a file has such a name, or it is that of an input.
        """
        read = [path for path in inputs if path is not None and path.exists()]
        for path in self._numbered(number) if self.stem is not None else ():
            if not path.exists():
                continue
            if not path.is_file():
                raise InputError(f"'{path}' exists and is no ordinary file: name another place with -o.")
            if any(path.samefile(other) for other in read):
                raise InputError(f"'{path}' is read by this command: name another file with -o.")

    def holds(self, path: Path, number: int) -> bool:
        """Whether one of so many asked-for names is that of a path, however it is written."""
        named = self._numbered(number) if self.stem is not None else []
        return path.resolve() in (name.resolve() for name in named)

    def names(self, suggestions: Sequence[str]) -> list[Path]:
        """One path a picture; asked-for names are used as they are, suggested ones never overwrite a file."""
        if self.stem is not None:
            return self._numbered(len(suggestions))
        paths: list[Path] = []
        for suggestion in suggestions:
            paths.append(_free_path(self.folder, suggestion, self.suffix, paths))
        return paths

    def _numbered(self, number: int) -> list[Path]:
        """The asked-for name, with numbers where there are several files."""
        if number == 1:
            return [self.folder / f"{self.stem}{self.suffix}"]
        width = len(str(number))
        return [self.folder / f"{self.stem}-{index:0{width}}{self.suffix}" for index in range(1, number + 1)]


def _free_path(folder: Path, name: str, suffix: str, taken: Collection[Path]) -> Path:
    path, number = folder / f"{name}{suffix}", 1
    while path in taken or path.exists():
        number += 1
        path = folder / f"{name}-{number}{suffix}"
    return path


def encode_png(image: Image, settings: Mapping[str, Any]) -> bytes:
    """A picture as PNG that carries its settings as JSON under "stepvar"."""
    from stepvar.media import encoding

    return encoding.encode_png(image, {"stepvar": json.dumps(settings)})


def check_sheet(
    sheet: Path, inputs: Iterable[Path | None] = (), others: Sequence[tuple[Destination, int]] = ()
) -> None:
    """Checks, before any work, where before, mask and after are to be shown.

    Args:
        others: Where else the command writes, and how many files.

    Raises:
        InputError: When it cannot be written, is an input, or another output.
    """
    for destination, number in others:
        if destination.holds(sheet, number):
            raise InputError(f"'{sheet}' is what -o names too: name another file with --sheet.")
    if not sheet.suffix:
        raise InputError(f"--sheet '{sheet}' has no ending: name a .png or .jpg file.")
    Destination.parse(sheet, _SHEET_SUFFIXES).check_names(1, inputs)


def encode_sheet(rows: Sequence[Any], suffix: str) -> bytes:
    """Before, mask and after of edits, one row each, as a file of the format that an ending names."""
    import io

    from stepvar.editing.sheets import edit_sheet

    buffer = io.BytesIO()
    kind = "PNG" if suffix.lower() == SUFFIX else "JPEG"
    edit_sheet(rows).save(buffer, format=kind, **({"quality": 75} if kind == "JPEG" else {}))
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
    from stepvar.evaluation import provenance

    return provenance.versions()


def write_outputs(contents: Mapping[Path, bytes]) -> None:
    """Writes the files of a command, in new folders too: all of them or none, also on Ctrl-C.

    Raises:
        OSError: Naming the file that cannot be written.
    """
    from stepvar.files import write_files

    with CleanupOnInterrupt():
        write_files(contents)
