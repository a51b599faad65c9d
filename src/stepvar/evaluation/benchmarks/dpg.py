"""DPG-Bench (Hu et al. 2024): dpg_bench/prompts/ or dpg_bench/dpg_bench.csv of TencentQQGYLab/ELLA."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from stepvar.evaluation.benchmarks.benchmark import Benchmark, Item
from stepvar.evaluation.text_files import read_text, require_file_name, require_text


def load(path: Path) -> list[Item]:
    """Its folder of prompts, one .txt each, or its .csv with "item_id" and "text".

    Raises:
        ValueError: Naming the broken file or line.
    """
    return _load_folder(path) if path.is_dir() else _load_table(path)


def _load_folder(path: Path) -> list[Item]:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise ValueError(f"'{path}' holds no .txt files: give DPG-Bench's folder of prompts, or its .csv.")
    items = []
    for file in files:
        prompt = " ".join(read_text(file).split())
        if not prompt:
            raise ValueError(f"'{file}' is empty: it should hold a prompt.")
        items.append(Item(require_file_name(file.stem, "a file", f"'{path}'"), prompt))
    return items


def _load_table(path: Path) -> list[Item]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    found: dict[str, Item] = {}
    try:
        if not {"item_id", "text"} <= set(rows.fieldnames or ()):
            raise ValueError(f"'{path}' has no columns item_id and text: give DPG-Bench's dpg_bench.csv.")
        for row in rows:
            where = f"Line {rows.line_num} of '{path}'"
            name, prompt = require_text(row, "item_id", where), require_text(row, "text", where)
            item = Item(require_file_name(name, "an item_id", where), prompt)
            # One row a question: an item comes as often as it has questions.
            if found.setdefault(name, item) != item:
                raise ValueError(f"{where} has another text for the item_id {name!r} than a line before.")
    except csv.Error as error:
        raise ValueError(f"Line {rows.line_num + 1} of '{path}' is no CSV ({error}).") from error
    return list(found.values())


BENCHMARK = Benchmark(
    name="dpg",
    title="DPG-Bench",
    own_file="dpg_bench.csv",
    description=(
        "PROMPTS is the folder of .txt files or dpg_bench.csv; four pictures of each prompt in one grid."
    ),
    load=load,
    samples=4,
    path=lambda item, sample: item.name,
    grid=True,
)
