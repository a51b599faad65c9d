"""Drawing a run's batches and writing what is missing of them, with a line of the manifest for every file."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from PIL import Image

from stepvar.evaluation.benchmark_task import Group, Task
from stepvar.evaluation.manifest import Entry, checksum_of, format_entries
from stepvar.evaluation.run_folder import IMAGES
from stepvar.files import Staging
from stepvar.media.encoding import BackgroundEncoder, encode_png
from stepvar.media.video import Video, encode_video

if TYPE_CHECKING:
    from stepvar.evaluation.benchmark_run import BenchmarkRun
    from stepvar.generation.report import Report


def write_extras(task: Task, index: int, folder: Path, staging: Staging) -> None:
    """Writes what the scorer wants beside the pictures of a prompt, unless it is there."""
    for extra, text in task.benchmark.extra(task.items[index]).items():
        path, content = folder / IMAGES / extra, text.encode()
        if not path.is_file() or path.read_bytes() != content:
            staging.write(path, content)


class PictureWriter:
    """Draws batches of a run, and writes the files that are missing.

    Files are encoded in the background while the next batch is drawn; leaving the block writes what is
    pending.

    Args:
        run: What is drawn.
        manifest: File that gets a line for every picture.
        staging: In the run's folder.
        batch: Pictures drawn at a time.
        written: Called after every file, with its entry.
    """

    def __init__(
        self,
        run: BenchmarkRun,
        manifest: Path,
        staging: Staging,
        batch: int,
        written: Callable[[Entry], None] | None = None,
    ) -> None:
        self.run, self.manifest, self.staging = run, manifest, staging
        self.batch, self.written = batch, written
        self._encoder = BackgroundEncoder[bytes]()

    def __enter__(self) -> PictureWriter:
        self._encoder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoder.__exit__(kind, error, trace)

    def draw(self, group: Group, missing: Container[str]) -> None:
        """Draws a group whole, so that nothing depends on what is there already; writes what is missing."""
        for file in self._generate(group, missing):
            if file.name in missing:
                self._encoder.add(file.encode, partial(self._commit, file))

    def _commit(self, file: _GeneratedFile, content: bytes) -> None:
        write_extras(self.run.task, file.index, self.run.folder, self.staging)
        self.staging.write(self.run.folder / file.name, content)
        entry = self._entry(file, content)
        # Opened anew each time: another process may have replaced the manifest.
        with self.manifest.open("ab") as stream:
            stream.write(format_entries([entry]))
        if self.written is not None:
            self.written(entry)

    def _generate(self, group: Group, missing: Container[str]) -> Iterator[_GeneratedFile]:
        """Generates the pictures or videos of some prompts, but no batch of which nothing is missing."""
        run, task = self.run, self.run.task
        settings = run.settings_of(task.items[group[0]])
        pairs = [(index, sample) for index in group for sample in range(task.samples[index])]
        waiting: dict[int, list[Image.Image]] = {}
        for start in range(0, len(pairs), self.batch):
            part = pairs[start : start + self.batch]
            if not any(task.file(index, sample) in missing for index, sample in part):
                continue
            prompts = [task.items[index].prompt for index, _ in part]
            seeds = [task.first_seeds[index] + sample for index, sample in part]
            result = run.pipeline(prompts, seed=seeds, pruning=run.pruning, **settings)
            if task.benchmark.video:
                for (index, sample), frames in zip(part, result.frames, strict=True):
                    encode = partial(encode_video, Video(frames, result.frames_per_second), task.suffix)
                    yield _GeneratedFile(index, sample, task.file(index, sample), encode, result.report)
                continue
            for (index, sample), picture in zip(part, result.images, strict=True):
                if not task.benchmark.grid:
                    encode = partial(encode_png, picture)
                    yield _GeneratedFile(index, sample, task.file(index, sample), encode, result.report)
                    continue
                waiting.setdefault(index, []).append(picture)
                if len(waiting[index]) == task.samples[index]:
                    encode = partial(encode_png, _grid(waiting.pop(index)))
                    yield _GeneratedFile(index, 0, task.file(index, 0), encode, result.report)

    def _entry(self, file: _GeneratedFile, content: bytes) -> Entry:
        """A file's line of the manifest."""
        task, item, sample = self.run.task, self.run.task.items[file.index], file.sample
        first, shared, identity = task.first_seeds[file.index], file.report.settings, self.run.identity
        return {
            "file": file.name,
            "sha256": checksum_of(content),
            "item": item.name,
            "group": item.group,
            "prompt": item.prompt,
            "sample": sample,
            "seed": [first + place for place in range(task.samples[file.index])]
            if task.benchmark.grid
            else first + sample,
            "width": shared["width"],
            "height": shared["height"],
            "model": identity["model"],
            "revision": identity["revision"],
            "dtype": identity["dtype"],
            "plan": identity["plan"],
            "guidance_scale": shared.get("guidance_scale"),
            "versions": identity["versions"],
        }


@dataclass(frozen=True)
class _GeneratedFile:
    """A generated file that is not encoded yet.

    Attributes:
        index, sample: Of its prompt, and of the picture of this prompt.
        name: Inside of the run's folder.
        encode: Makes its content.
        report: Of the call that generated it.
    """

    index: int
    sample: int
    name: str
    encode: Callable[[], bytes]
    report: Report


def _grid(pictures: list[Image.Image]) -> Image.Image:
    """One picture, or four in two rows."""
    if len(pictures) == 1:
        return pictures[0]
    width, height = pictures[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for place, picture in enumerate(pictures):
        grid.paste(picture, (place % 2 * width, place // 2 * height))
    return grid
