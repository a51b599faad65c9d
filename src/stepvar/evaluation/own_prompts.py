"""A file of one's own prompts as a benchmark without a scorer: `stepvar generate --prompts FILE`."""

from __future__ import annotations

import re
from pathlib import Path

from stepvar.evaluation.benchmarks import Benchmark, Item
from stepvar.evaluation.prompts import load_lines
from stepvar.evaluation.text_files import parse_object, read_lines, require_text

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_KEYS = {"prompt", "size"}


def load(path: Path) -> list[Item]:
    """One prompt a line; of a .jsonl one object a line, with "prompt" and, if it has its own, "size".

    Raises:
        ValueError: Naming the broken line.
    """
    if path.suffix.lower() != ".jsonl":
        return [Item(f"{number:05}", prompt) for number, prompt in enumerate(load_lines(path))]
    items = []
    for number, line in read_lines(path):
        where = f"Line {number} of '{path}'"
        record = parse_object(line, where)
        unknown = sorted(record.keys() - _KEYS)
        if unknown:
            raise ValueError(f"{where} has {unknown[0]!r}: use prompt, and size where it has its own.")
        prompt, size = require_text(record, "prompt", where), None
        if "size" in record:
            found = _SIZE.fullmatch(require_text(record, "size", where))
            if found is None or not int(found[1]) * int(found[2]):
                raise ValueError(f"{where} has a size that is not understood: write it as '1024x768'.")
            size = int(found[2]), int(found[1])
        items.append(Item(f"{number - 1:05}", prompt, size=size))
    return items


PROMPTS = Benchmark(
    name="prompts",
    title="a file of prompts",
    own_file="prompts.txt",
    description="One prompt a line, or a .jsonl of objects with a prompt and a size.",
    load=load,
    samples=1,
    path=lambda item, sample: f"{item.name}-{sample}",
)
"""Pictures of one's own prompts: `images/00000-0.png` is the first one of the first prompt."""
