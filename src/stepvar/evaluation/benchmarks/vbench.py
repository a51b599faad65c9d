"""VBench (Huang et al. 2024): VBench_full_info.json of Vchitect/VBench."""

from __future__ import annotations

from pathlib import Path

from stepvar.evaluation.benchmarks.benchmark import Benchmark, Item
from stepvar.evaluation.text_files import parse_json, read_text, require_file_name, require_text

FLICKERING = "temporal_flickering"


def load(path: Path) -> list[Item]:
    """Its VBench_full_info.json: a list of {"prompt_en", "dimension"}.

    Raises:
        ValueError: Naming the broken entry.
    """
    document = parse_json(read_text(path), f"'{path}'")
    if not isinstance(document, list):
        raise ValueError(f"'{path}' is no list of prompts: give VBench_full_info.json.")
    items: dict[str, Item] = {}
    for number, record in enumerate(document, start=1):
        where = f"Entry {number} of '{path}'"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is no object with prompt_en and dimension.")
        # The scorer finds videos by their prompts.
        prompt = require_file_name(require_text(record, "prompt_en", where), "a prompt", where)
        dimensions = record.get("dimension")
        if not isinstance(dimensions, list) or not all(isinstance(name, str) for name in dimensions):
            raise ValueError(f"{where} has no list 'dimension'.")
        # The scorer filters static videos of this dimension out first, so it wants more.
        samples = 25 if FLICKERING in dimensions else 5
        # A prompt comes once for each of several dimensions.
        known = items.get(prompt)
        items[prompt] = Item(prompt, prompt, samples=max(samples, known.samples if known else 0))
    return list(items.values())


BENCHMARK = Benchmark(
    name="vbench",
    title="VBench",
    own_file="VBench_full_info.json",
    description=(
        "PROMPTS is VBench_full_info.json; five videos of each prompt, 25 for temporal flickering. The model "
        "must be one of videos."
    ),
    load=load,
    samples=5,
    path=lambda item, sample: f"{item.name}-{sample}",
    video=True,
)
