"""What a run of a benchmark wants: prompts, pictures of each, their seeds and files, and its batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from stepvar.evaluation.benchmarks import Benchmark, Item
from stepvar.evaluation.run_folder import IMAGES
from stepvar.media.video import require_writer

Group = tuple[int, ...]
"""Prompts, by their place in a task, that are drawn together."""


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

    def of_videos(self, video_format: str = "mp4") -> Task:
        """The same prompts, for a model that draws videos.

        Raises:
            VideoSupportError: When videos cannot be written here.
        """
        require_writer(f".{video_format}")
        return replace(self, benchmark=replace(self.benchmark, video=True), suffix=f".{video_format}")

    @property
    def pictures(self) -> int:
        """Files of the whole run, all shards together."""
        return len(self.items) if self.benchmark.grid else sum(self.samples)

    def file(self, index: int, sample: int) -> str:
        """File of a picture, below the run's folder; that of the grid, where all samples are in one."""
        return f"{IMAGES}/{self.benchmark.path(self.items[index], sample)}{self.suffix}"

    def files(self, index: int) -> list[str]:
        """Files of a prompt, in order."""
        count = 1 if self.benchmark.grid else self.samples[index]
        return [self.file(index, sample) for sample in range(count)]

    @property
    def digest(self) -> str:
        """Changes with any prompt."""
        content = "\n".join(
            f"{item.name}\t{item.prompt}" + (f"\t{item.size}" if item.size else "") for item in self.items
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def batches(self, most: int) -> list[Group]:
        """Prompts that are drawn together: of one size, of similar length, with at most so many pictures.

        They depend on nothing but the task and `most`: on no shard, no worker, nothing that is there already.
        A picture's last bits depend on what it is drawn with, in half precision all of it does; so every way
        of sharing the work, and of going on with it, draws the same pictures. A prompt that wants more
        pictures is a group of its own, drawn in several batches.
        """
        order = sorted(range(len(self.items)), key=self._likeness)
        groups: list[Group] = []
        pictures = 0
        for index in order:
            last = groups[-1][-1] if groups else index
            same_size = self.items[last].size == self.items[index].size
            if groups and same_size and pictures + self.samples[index] <= most:
                groups[-1] = (*groups[-1], index)
                pictures += self.samples[index]
            else:
                groups.append((index,))
                pictures = self.samples[index]
        return groups

    def _likeness(self, index: int) -> tuple[tuple[int, int], int, int]:
        item = self.items[index]
        return item.size or (0, 0), len(item.prompt.encode()), index

    def files_of(self, groups: Iterable[Group]) -> list[str]:
        """Files of the prompts of some groups."""
        return [name for group in groups for index in group for name in self.files(index)]

    def all_files(self) -> list[str]:
        """Files of the whole run, in the order of the prompts."""
        return [name for index in range(len(self.items)) for name in self.files(index)]
