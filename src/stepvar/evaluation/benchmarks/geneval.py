"""GenEval (Ghosh et al. 2023): prompts/evaluation_metadata.jsonl of djghosh13/geneval."""

from __future__ import annotations

from pathlib import Path

from stepvar.evaluation.benchmarks.benchmark import Benchmark, Item
from stepvar.evaluation.text_files import parse_object, read_lines, require_text


def load(path: Path) -> list[Item]:
    """Its .jsonl: one JSON object a line, with "prompt" and "tag".

    Raises:
        ValueError: Naming the broken line.
    """
    items = []
    for number, line in read_lines(path):
        where = f"Line {number} of '{path}'"
        record = parse_object(line, where)
        prompt, tag = require_text(record, "prompt", where), require_text(record, "tag", where)
        items.append(Item(f"{number - 1:05}", prompt, line=line.strip(), group=tag))
    return items


BENCHMARK = Benchmark(
    name="geneval",
    title="GenEval",
    own_file="evaluation_metadata.jsonl",
    description="PROMPTS is evaluation_metadata.jsonl; four pictures of each prompt.",
    load=load,
    samples=4,
    path=lambda item, sample: f"{item.name}/samples/{sample:04}",
    extra=lambda item: {f"{item.name}/metadata.jsonl": f"{item.line}\n"},
)
