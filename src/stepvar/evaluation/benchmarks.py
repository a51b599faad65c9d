"""Drawing a benchmark's prompts into the layout that its official scorer reads.

Runs go on where they were stopped, and shards share a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from stepvar.evaluation.prompts import Item, Loader, load_dpg, load_geneval, load_mjhq, load_vbench
from stepvar.evaluation.provenance import fingerprint, versions
from stepvar.evaluation.run_folder import IMAGES, RunFolder, Shard, write_atomically
from stepvar.media.video import Video, encode_video, require_writer

if TYPE_CHECKING:
    from stepvar.generation.pruner import PruningMethod
    from stepvar.models.pipeline import NextScalePipeline

Advance = Callable[[int], None]
"""Told how many pictures were drawn."""


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark wants its pictures.

    Attributes:
        name: As on the command line.
        load: Reads its prompts.
        samples: Pictures of each prompt, where a prompt does not say.
        path: File of a sample, below `images/`, without its ending.
        extra: Further files of an item, below `images/`, with their text.
        grid: All samples of a prompt go into one picture, in rows of two.
        video: It is about videos.
    """

    name: str
    load: Loader
    samples: int
    path: Callable[[Item, int], str]
    extra: Callable[[Item], Mapping[str, str]] = lambda item: {}
    grid: bool = False
    video: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    entry.name: entry
    for entry in (
        Benchmark(
            "geneval",
            load_geneval,
            4,
            lambda item, sample: f"{item.name}/samples/{sample:04}",
            lambda item: {f"{item.name}/metadata.jsonl": f"{item.line}\n"},
        ),
        Benchmark("dpg", load_dpg, 4, lambda item, sample: item.name, grid=True),
        Benchmark("mjhq", load_mjhq, 1, lambda item, sample: f"{item.group}/{item.name}"),
        Benchmark("vbench", load_vbench, 5, lambda item, sample: f"{item.name}-{sample}", video=True),
    )
}


@dataclass(frozen=True)
class Drawing:
    """What a run left.

    Attributes:
        folder: Of the run.
        drawn: Pictures drawn now; found: those that were there.
        missing: Pictures of other shards that are not there yet; 0 when `manifest.jsonl` is complete.
    """

    folder: Path
    drawn: int
    found: int
    missing: int


class Run:
    """One benchmark drawn with one model, plan and set of settings.

    Args:
        pipeline: The model.
        benchmark: Which.
        prompts: The benchmark's own file or folder.
        folder: Where the run goes; new, empty, or holding this very run.
        pruning: As the pipeline takes it.
        seed: Of the first picture of the first prompt; the others count on.
        samples: Pictures of each prompt, instead of the protocol's number.
        limit: Only the first prompts.
        settings: Further keyword arguments of the pipeline.
        video_format: "mp4", or "gif", which loses colours.

    Raises:
        ValueError: When prompts are broken, or the folder holds something else.
    """

    def __init__(
        self,
        pipeline: NextScalePipeline,
        benchmark: Benchmark,
        prompts: Path,
        folder: Path,
        pruning: PruningMethod | str | None = None,
        seed: int = 0,
        samples: int | None = None,
        limit: int | None = None,
        settings: dict[str, Any] | None = None,
        video_format: str = "mp4",
    ) -> None:
        self.pipeline, self.benchmark, self.folder = pipeline, benchmark, folder
        self.pruning, self.seed, self.settings = pruning, seed, settings or {}
        self.suffix = f".{video_format}" if benchmark.video else ".png"
        if benchmark.video:
            _require_video(pipeline, benchmark.name)
            require_writer(self.suffix)
        self.items = list(benchmark.load(prompts))[:limit]
        self.samples = [samples or item.samples or benchmark.samples for item in self.items]
        if benchmark.grid and not set(self.samples) <= {1, 4}:
            raise ValueError(f"{benchmark.name} scores grids of 4 pictures, or single ones: ask for 4 or 1.")
        self.first_seed = [seed + sum(self.samples[:index]) for index in range(len(self.items))]
        self.identity = self._identity()

    def _identity(self) -> dict[str, Any]:
        """What two processes must share to draw into one folder."""
        from stepvar.models.pipeline import describe

        method = self.pipeline.resolve_pruning(self.pruning)
        self.pipeline.summary(method, **self._size())
        told = "\n".join(f"{item.name}\t{item.prompt}" for item in self.items)
        transformer = self.pipeline.transformer
        return {
            "benchmark": self.benchmark.name,
            "prompts": hashlib.sha256(told.encode()).hexdigest()[:16],
            "number": len(self.items),
            "samples": sum(self.samples),
            "seed": self.seed,
            "model": self.pipeline.origin,
            "revision": fingerprint(self.pipeline),
            "dtype": str(transformer.compute_dtype).removeprefix("torch."),
            "plan": describe(method),
            "settings": describe(self.settings),
            "files": self.suffix,
            "versions": versions(),
        }

    def _size(self) -> dict[str, Any]:
        known = ("height", "width", "aspect_ratio", "pixel_budget", "guidance_scale", "seconds")
        return {key: self.settings[key] for key in known if key in self.settings}

    @property
    def pictures(self) -> int:
        """Files of the whole run, all shards together."""
        return len(self.items) if self.benchmark.grid else sum(self.samples)

    def draw(self, shard: Shard | None = None, batch: int = 4, advance: Advance | None = None) -> Drawing:
        """Draws what this shard still lacks.

        Args:
            shard: Which part of the prompts; by default all.
            batch: Pictures drawn at a time.
            advance: Hears of every file that is done, those found included.
        """
        shard = shard or Shard()
        folder = RunFolder(self.folder, self.identity)
        fresh = folder.claim()
        manifest = self.folder / shard.manifest
        try:
            return self._draw_missing(folder, shard, batch, advance)
        except ValueError:
            # A call that cannot be drawn claims no folder: the corrected one shall find it free.
            if fresh and not manifest.read_bytes():
                folder.leave(manifest)
            raise

    def _draw_missing(self, folder: RunFolder, shard: Shard, batch: int, advance: Advance | None) -> Drawing:
        manifest = self.folder / shard.manifest
        done = folder.tidy(manifest)
        found = drawn = 0
        mine = range(shard.index - 1, len(self.items), shard.count)
        todo = [index for index in mine if not self._files(index) <= done.keys()]
        found = sum(len(self._files(index)) for index in mine if index not in todo)
        if advance is not None and found:
            advance(found)
        with manifest.open("a", encoding="utf-8") as stream:
            for group in self._groups(todo, batch):
                for entries in self._draw_group(group, batch):
                    stream.write("".join(json.dumps(entry) + "\n" for entry in entries))
                    stream.flush()
                    drawn += len(entries)
                    if advance is not None:
                        advance(len(entries))
        wanted = [name for index in range(len(self.items)) for name in sorted(self._files(index))]
        return Drawing(self.folder, drawn, found, folder.merge(wanted))

    def _files(self, index: int) -> set[str]:
        item = self.items[index]
        count = 1 if self.benchmark.grid else self.samples[index]
        return {f"{IMAGES}/{self.benchmark.path(item, sample)}{self.suffix}" for sample in range(count)}

    def _groups(self, todo: Sequence[int], batch: int) -> Iterator[Sequence[int]]:
        """Prompts to draw together, so that a batch is full even where a prompt wants one picture."""
        group: list[int] = []
        for index in todo:
            if group and sum(self.samples[entry] for entry in [*group, index]) > batch:
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    def _draw_group(self, group: Sequence[int], batch: int) -> Iterator[list[dict[str, Any]]]:
        """Draws some prompts, writes their files, and gives their lines of the manifest."""
        jobs = [(index, sample) for index in group for sample in range(self.samples[index])]
        waiting: dict[int, list[Any]] = {}
        for start in range(0, len(jobs), batch):
            part = jobs[start : start + batch]
            prompts = [self.items[index].prompt for index, _ in part]
            seeds = [self.first_seed[index] + sample for index, sample in part]
            result = self.pipeline(prompts, seed=seeds, pruning=self.pruning, **self.settings)
            entries = []
            pictures = result.frames if self.benchmark.video else result.images
            for (index, sample), picture in zip(part, pictures, strict=True):
                if not self.benchmark.grid:
                    entries.append(self._write(index, sample, picture, result))
                    continue
                waiting.setdefault(index, []).append(picture)
                if len(waiting[index]) == self.samples[index]:
                    entries.append(self._write(index, 0, _grid(waiting.pop(index)), result))
            yield entries

    def _write(self, index: int, sample: int, picture: Any, result: Any) -> dict[str, Any]:
        item = self.items[index]
        name = f"{self.benchmark.path(item, sample)}{self.suffix}"
        path = self.folder / IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for extra, text in self.benchmark.extra(item).items():
            write_atomically(self.folder / IMAGES / extra, text.encode())
        if self.benchmark.video:
            content = encode_video(Video(picture, result.frames_per_second), self.suffix)
        else:
            content = _png(picture)
        write_atomically(path, content)
        first = self.first_seed[index]
        shared = result.report.settings
        return {
            "file": f"{IMAGES}/{name}",
            "item": item.name,
            "group": item.group,
            "prompt": item.prompt,
            "sample": sample,
            "seed": [first + place for place in range(self.samples[index])]
            if self.benchmark.grid
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


def _grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture, or four in two rows."""
    if len(pictures) == 1:
        return pictures[0]
    width, height = pictures[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for place, picture in enumerate(pictures):
        grid.paste(picture, (place % 2 * width, place // 2 * height))
    return grid


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _require_video(pipeline: NextScalePipeline, benchmark: str) -> None:
    """Refuses a pipeline that draws pictures."""
    if not pipeline.draws_videos:
        raise ValueError(
            f"{benchmark} scores videos, but {type(pipeline).__name__} draws pictures: name a video model "
            "with --model."
        )
