"""Contract of a benchmark: its prompts, and the layout of pictures that its official scorer reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """One prompt of a benchmark.

    Attributes:
        name: Unique; part of the file's name in the layout that the official scorer reads.
        prompt: What to generate.
        line: The benchmark's own record, which some scorers want beside the pictures.
        group: Folder, category or the like.
        samples: Pictures that the benchmark's protocol wants of this prompt; 0 leaves it to the benchmark.
        size: Height and width of its pictures in pixels; None leaves it to the run.
    """

    name: str
    prompt: str
    line: str = ""
    group: str = ""
    samples: int = 0
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's prompts and layout.

    Attributes:
        name: As on the command line.
        title: As its authors write it.
        own_file: Name of its file of prompts, where a data set on the hub holds it.
        description: For the command's help: which file it reads, how many pictures it wants.
        load: Reads its prompts, or raises ValueError naming the broken line.
        samples: Pictures of each prompt, where a prompt does not say.
        path: File of a sample, below `images/`, without its ending. Parts that come from a prompts file must
            have passed `stepvar.evaluation.text_files.require_file_name`.
        extra: Further files of an item, below `images/`, with their text.
        grid: All samples of a prompt go into one picture, in rows of two.
        video: It is about videos.
    """

    name: str
    title: str
    own_file: str
    description: str
    load: Callable[[Path], Sequence[Item]]
    samples: int
    path: Callable[[Item, int], str]
    extra: Callable[[Item], Mapping[str, str]] = lambda item: {}
    grid: bool = False
    video: bool = False

    def load_items(self, prompts: Path) -> list[Item]:
        """All prompts of a file.

        Raises:
            ValueError: When the file is broken, or holds none.
        """
        items = list(self.load(prompts))
        if not items:
            raise ValueError(f"'{prompts}' holds no prompts: give {self.title}'s {self.own_file}.")
        return items
