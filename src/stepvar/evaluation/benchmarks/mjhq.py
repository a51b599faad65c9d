"""MJHQ-30K (Li et al. 2024): meta_data.json of playgroundai/MJHQ-30K."""

from __future__ import annotations

from pathlib import Path

from stepvar.evaluation.benchmarks.benchmark import Benchmark, Item
from stepvar.evaluation.text_files import parse_object, read_text, require_file_name, require_text


def load(path: Path) -> list[Item]:
    """Its meta_data.json: name -> {"category", "prompt"}.

    Raises:
        ValueError: Naming the broken entry.
    """
    items = []
    for number, (name, record) in enumerate(parse_object(read_text(path), f"'{path}'").items(), start=1):
        where = f"Entry {number} ({name[:60]!r}) of '{path}'"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is no object with a category and a prompt.")
        category, prompt = require_text(record, "category", where), require_text(record, "prompt", where)
        items.append(
            Item(
                require_file_name(name, "a name", where),
                prompt,
                group=require_file_name(category, "a category", where),
            )
        )
    return items


BENCHMARK = Benchmark(
    name="mjhq",
    title="MJHQ-30K",
    own_file="meta_data.json",
    description="PROMPTS is meta_data.json; one picture of each, in a folder per category.",
    load=load,
    samples=1,
    path=lambda item, sample: f"{item.group}/{item.name}",
)
