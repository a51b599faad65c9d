"""Pictures of a benchmark's prompts in the layout that its official scorer reads.

A stopped run continues where it was, and shards share a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from stepvar.evaluation.benchmarks import Benchmark, Item
from stepvar.evaluation.manifest import Entry, checksum_of, format_entries
from stepvar.evaluation.provenance import fingerprint, versions
from stepvar.evaluation.run_folder import IMAGES, RunFolder, Shard
from stepvar.files import Staging
from stepvar.media.encoding import BackgroundEncoder, encode_png
from stepvar.media.video import Video, encode_video, require_writer

if TYPE_CHECKING:
    from stepvar.generation.report import Report
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Pruning

Advance = Callable[[int], None]
"""Called with the number of files that were just finished."""


@dataclass(frozen=True)
class Task:
    """The pictures that a run wants, whatever the model.

    Attributes:
        benchmark: Which.
        items: Its prompts.
        samples: Pictures of each prompt.
        seed: Of the first picture of the first prompt; the others count on.
        suffix: Ending of the files.
    """

    benchmark: Benchmark
    items: Sequence[Item]
    samples: Sequence[int]
    seed: int = 0
    suffix: str = ".png"
    first_seeds: Sequence[int] = field(init=False)
    """Seed of the first picture of each prompt."""

    def __post_init__(self) -> None:
        if self.benchmark.grid and not set(self.samples) <= {1, 4}:
            raise ValueError(
                f"{self.benchmark.name} scores grids of 4 pictures, or single ones: ask for 4 or 1."
            )
        starts = list(accumulate(self.samples, initial=self.seed))[:-1]
        object.__setattr__(self, "first_seeds", starts)

    @classmethod
    def load(
        cls,
        benchmark: Benchmark,
        prompts: Path,
        seed: int = 0,
        samples: int | None = None,
        limit: int | None = None,
        video_format: str = "mp4",
    ) -> Task:
        """Reads a benchmark's prompts.

        Args:
            prompts: The benchmark's own file or folder.
            samples: Pictures of each prompt, instead of the protocol's number.
            limit: Only the first prompts.
            video_format: "mp4", or "gif", which loses colours.

        Raises:
            ValueError: When prompts are broken, or the benchmark cannot be run like this.
        """
        suffix = f".{video_format}" if benchmark.video else ".png"
        if benchmark.video:
            require_writer(suffix)
        items = benchmark.load_items(prompts)[:limit]
        counts = [samples or item.samples or benchmark.samples for item in items]
        return cls(benchmark, items, counts, seed, suffix)

    @property
    def pictures(self) -> int:
        """Files of the whole run, all shards together."""
        return len(self.items) if self.benchmark.grid else sum(self.samples)

    def name(self, index: int, sample: int) -> str:
        """File of a picture, below the run's folder."""
        return f"{IMAGES}/{self.benchmark.path(self.items[index], sample)}{self.suffix}"

    def files(self, index: int) -> list[str]:
        """Files of a prompt, in order."""
        count = 1 if self.benchmark.grid else self.samples[index]
        return [self.name(index, sample) for sample in range(count)]

    @property
    def digest(self) -> str:
        """Changes with any prompt."""
        content = "\n".join(f"{item.name}\t{item.prompt}" for item in self.items)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RunStatus:
    """State of a run's folder when a process has finished.

    Attributes:
        folder: Of the run.
        generated: Files made now; found: those that were there, and whole.
        missing: Files of other shards that are not there yet; 0 when `manifest.jsonl` is complete.
    """

    folder: Path
    generated: int
    found: int
    missing: int


class BenchmarkRun:
    """One benchmark's pictures with one model, plan and set of settings.

    Args:
        pipeline: The model.
        task: The pictures that are wanted.
        folder: Of the run; new, empty, or holding this very run.
        pruning: As the pipeline takes it.
        settings: Further keyword arguments of the pipeline.

    Raises:
        ValueError: When the model cannot do the task.
    """

    def __init__(
        self,
        pipeline: NextScalePipeline,
        task: Task,
        folder: Path,
        pruning: Pruning = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.pipeline, self.task, self.folder = pipeline, task, folder
        self.pruning, self.settings = pruning, dict(settings or {})
        if task.benchmark.video and not pipeline.draws_videos:
            raise ValueError(
                f"{task.benchmark.name} scores videos, but {type(pipeline).__name__} draws pictures: name a "
                "video model with --model."
            )
        if pipeline.draws_videos and not task.benchmark.video:
            self.settings["seconds"] = 0
        self.identity = self._identity()

    def _identity(self) -> dict[str, Any]:
        """What two processes must share to fill one folder."""
        from stepvar.models.output import as_json_value

        method = self.pipeline.resolve_pruning(self.pruning)
        self.pipeline.summary(method, **self.settings)
        task = self.task
        return {
            "benchmark": task.benchmark.name,
            "prompts": task.digest,
            "number": len(task.items),
            "samples": sum(task.samples),
            "seed": task.seed,
            "model": self.pipeline.origin,
            "revision": fingerprint(self.pipeline),
            "dtype": str(self.pipeline.transformer.compute_dtype).removeprefix("torch."),
            "plan": as_json_value(method),
            "settings": as_json_value(self.settings),
            "files": task.suffix,
            "versions": versions(),
        }

    def generate(
        self, shard: Shard | None = None, batch: int = 4, advance: Advance | None = None
    ) -> RunStatus:
        """Generates the files that this shard lacks, or that are broken.

        Args:
            shard: Which part of the prompts; by default all.
            batch: Pictures generated at a time, videos one by one; in half precision a run goes on with the
                batch it began with, unless its settings have `batch_invariant`.
            advance: Called for every file, found ones included.
        """
        shard = shard or Shard()
        if self.pipeline.draws_videos:
            # They are computed one after the other, but their texts would be encoded together.
            batch = 1
        invariant = self.pipeline.draws_videos or bool(self.settings.get("batch_invariant"))
        # In half precision a picture's bits depend on how many are drawn at a time.
        exact = invariant or self.identity["dtype"] == "float32"
        identity = self.identity if exact else {**self.identity, "batch": batch}
        folder = RunFolder(self.folder, identity)
        fresh = folder.claim()
        manifest = self.folder / shard.manifest
        try:
            with Staging(self.folder) as staging:
                return self._fill(folder, shard, batch, staging, advance)
        except ValueError:
            # A call that cannot be carried out claims no folder: the corrected one shall find it free.
            if fresh and not (manifest.exists() and manifest.read_bytes()):
                folder.release(manifest)
            raise

    def _fill(
        self, folder: RunFolder, shard: Shard, batch: int, staging: Staging, advance: Advance | None
    ) -> RunStatus:
        task, manifest = self.task, self.folder / shard.manifest
        done = folder.check_pictures(manifest)
        mine = range(shard.index - 1, len(task.items), shard.count)
        todo = [index for index in mine if not done.keys() >= set(task.files(index))]
        left = set(todo)
        found = generated = 0
        for index in mine:
            if index not in left:
                found += len(task.files(index))
                self._write_extras(index, staging)
        if advance is not None and found:
            advance(found)

        def commit(file: _GeneratedFile, content: bytes) -> None:
            self._write_extras(file.index, staging)
            staging.write(self.folder / file.name, content)
            done[file.name] = self._entry(file, content)
            # Opened anew each time: another process may have replaced the manifest.
            with manifest.open("ab") as stream:
                stream.write(format_entries([done[file.name]]))
            if advance is not None:
                advance(1)

        with BackgroundEncoder[bytes]() as encoder:
            for group in self._groups(todo, batch):
                for file in self._generate_group(group, batch):
                    encoder.add(file.encode, partial(commit, file))
                    generated += 1
        wanted = [name for index in range(len(task.items)) for name in task.files(index)]
        return RunStatus(self.folder, generated, found, folder.merge(wanted, done))

    def _groups(self, todo: Sequence[int], batch: int) -> Iterator[Sequence[int]]:
        """Prompts to generate together, so that a batch is full even where a prompt wants one picture."""
        group: list[int] = []
        pictures = 0
        for index in todo:
            if group and pictures + self.task.samples[index] > batch:
                yield group
                group, pictures = [], 0
            group.append(index)
            pictures += self.task.samples[index]
        if group:
            yield group

    def _generate_group(self, group: Sequence[int], batch: int) -> Iterator[_GeneratedFile]:
        """Generates the pictures or videos of some prompts."""
        task = self.task
        pairs = [(index, sample) for index in group for sample in range(task.samples[index])]
        waiting: dict[int, list[Image.Image]] = {}
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            prompts = [task.items[index].prompt for index, _ in part]
            seeds = [task.first_seeds[index] + sample for index, sample in part]
            result = self.pipeline(prompts, seed=seeds, pruning=self.pruning, **self.settings)
            if task.benchmark.video:
                for (index, sample), frames in zip(part, result.frames, strict=True):
                    encode = partial(encode_video, Video(frames, result.frames_per_second), task.suffix)
                    yield _GeneratedFile(index, sample, task.name(index, sample), encode, result.report)
                continue
            for (index, sample), picture in zip(part, result.images, strict=True):
                if not task.benchmark.grid:
                    encode = partial(encode_png, picture)
                    yield _GeneratedFile(index, sample, task.name(index, sample), encode, result.report)
                    continue
                waiting.setdefault(index, []).append(picture)
                if len(waiting[index]) == task.samples[index]:
                    encode = partial(encode_png, _grid(waiting.pop(index)))
                    yield _GeneratedFile(index, 0, task.name(index, 0), encode, result.report)

    def _entry(self, file: _GeneratedFile, content: bytes) -> Entry:
        """A file's line of the manifest."""
        task, item, sample = self.task, self.task.items[file.index], file.sample
        first, shared = task.first_seeds[file.index], file.report.settings
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
            "model": self.identity["model"],
            "revision": self.identity["revision"],
            "dtype": self.identity["dtype"],
            "plan": self.identity["plan"],
            "guidance_scale": shared.get("guidance_scale"),
            "versions": self.identity["versions"],
        }

    def _write_extras(self, index: int, staging: Staging) -> None:
        """Writes what the scorer wants beside the pictures of a prompt, unless it is there."""
        for extra, text in self.task.benchmark.extra(self.task.items[index]).items():
            path, content = self.folder / IMAGES / extra, text.encode()
            if not path.is_file() or path.read_bytes() != content:
                staging.write(path, content)


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


def _grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture, or four in two rows."""
    if len(pictures) == 1:
        return pictures[0]
    width, height = pictures[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for place, picture in enumerate(pictures):
        grid.paste(picture, (place % 2 * width, place // 2 * height))
    return grid
