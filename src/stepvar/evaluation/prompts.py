"""Prompts from benchmarks' own files, on this machine or in a data set on the hub, checked line by line.

Formats: djghosh13/geneval prompts/evaluation_metadata.jsonl; TencentQQGYLab/ELLA dpg_bench/prompts/*.txt or
dpg_bench/dpg_bench.csv; playgroundai/MJHQ-30K meta_data.json; Vchitect/VBench VBench_full_info.json.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN_FILES = {
    "geneval": "evaluation_metadata.jsonl",
    "dpg": "dpg_bench.csv",
    "mjhq": "meta_data.json",
    "vbench": "VBench_full_info.json",
}
"""What benchmarks call their files of prompts."""

# File systems take 255 bytes, of which a sample's number and an ending need some.
_SAFE = re.compile(r"[^/\\\x00-\x1f]{1,240}")
_ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(.+))?")
_ENDINGS = (".jsonl", ".json", ".csv", ".txt")


@dataclass(frozen=True)
class Item:
    """One prompt of a benchmark.

    Attributes:
        name: Unique; part of the file's name in the layout that the official scorer reads.
        prompt: What to draw.
        line: The benchmark's own record, which some scorers want beside the pictures.
        group: Folder, category or the like.
        samples: Pictures that the benchmark's protocol wants of this prompt; 0 leaves it to the benchmark.
    """

    name: str
    prompt: str
    line: str = ""
    group: str = ""
    samples: int = 0


def find_prompts(source: Path, benchmark: str) -> Path:
    """A benchmark's prompts on this machine, downloaded where a data set on the hub is named.

    Args:
        source: A file or folder. Where there is none of that name: `org/name:path/in/it`, or `org/name` for
            the file as the benchmark itself calls it.
        benchmark: A name of `OWN_FILES`.

    Raises:
        ValueError: When a data set is named that has no such file, or that cannot be read.
    """
    named = None if source.exists() else _ON_HUB.fullmatch(source.as_posix())
    # A mistyped path looks like a data set too.
    if named is None or (named[2] is None and source.suffix in _ENDINGS):
        return source
    return _download(named[1], named[2] or OWN_FILES[benchmark])


def _download(data_set: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(data_set, file, repo_type="dataset"))
    except Exception as error:  # the library passes on those of whatever it reaches the hub with
        raise ValueError(
            f"There is no file or folder '{data_set}', and the data set '{data_set}' cannot be read: "
            f"{_explain_download(error, data_set, file)}."
        ) from error


def _explain_download(error: Exception, data_set: str, file: str) -> str:
    from huggingface_hub import utils

    if isinstance(error, utils.LocalEntryNotFoundError):
        return f"the hub was not reached, and '{file}' was not downloaded before"
    if isinstance(error, utils.EntryNotFoundError):
        return f"it has no file '{file}', name one as {data_set}:PATH"
    if isinstance(error, utils.RepositoryNotFoundError):
        return "the hub has none of that name, or not for you"
    return f"{type(error).__name__}: {error}"


def load_lines(path: Path) -> list[str]:
    """Prompts of a text file, one a line.

    Raises:
        ValueError: When the file cannot be read, or a line is empty; names the line by number.
    """
    prompts = []
    for number, line in _lines(path):
        if not line.strip():
            raise ValueError(f"Line {number} of '{path}' is empty: remove it, or write a prompt.")
        prompts.append(line.strip())
    return prompts


def load_geneval(path: Path) -> list[Item]:
    """GenEval's evaluation_metadata.jsonl: one JSON object a line, with "prompt" and "tag".

    Raises:
        ValueError: Naming the broken line.
    """
    items = []
    for number, line in _lines(path):
        record = _json(line, f"Line {number} of '{path}'")
        where = f"Line {number} of '{path}'"
        prompt = _text(record, "prompt", where)
        _text(record, "tag", where)
        items.append(Item(f"{number - 1:05}", prompt, line=line.strip(), group=record["tag"]))
    return items


def load_dpg(path: Path) -> list[Item]:
    """DPG-Bench's folder of prompts, one .txt each, or its .csv with "item_id" and "text".

    Raises:
        ValueError: Naming the broken file or line.
    """
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise ValueError(
                f"'{path}' holds no .txt files: give DPG-Bench's folder of prompts, or its .csv."
            )
        items = []
        for file in files:
            prompt = " ".join(_read(file).split())
            if not prompt:
                raise ValueError(f"'{file}' is empty: it should hold a prompt.")
            items.append(Item(file.stem, prompt))
        return items
    rows = csv.DictReader(io.StringIO(_read(path), newline=""))
    if not {"item_id", "text"} <= set(rows.fieldnames or ()):
        raise ValueError(f"'{path}' has no columns item_id and text: give DPG-Bench's dpg_bench.csv.")
    found: dict[str, Item] = {}
    for row in rows:
        where = f"Line {rows.line_num} of '{path}'"
        name, prompt = _text(row, "item_id", where), _text(row, "text", where)
        if not _SAFE.fullmatch(name):
            raise ValueError(f"{where} has an item_id {name!r} that cannot be a file name.")
        # One row a question: an item comes as often as it has questions.
        found.setdefault(name, Item(name, prompt))
    return list(found.values())


def load_mjhq(path: Path) -> list[Item]:
    """MJHQ-30K's meta_data.json: name -> {"category", "prompt"}.

    Raises:
        ValueError: Naming the broken entry.
    """
    document = _json(_read(path), f"'{path}'")
    items = []
    for number, (name, record) in enumerate(document.items(), start=1):
        where = f"Entry {number} ({name!r}) of '{path}'"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is no object with a category and a prompt.")
        category, prompt = _text(record, "category", where), _text(record, "prompt", where)
        if not _SAFE.fullmatch(name) or not _SAFE.fullmatch(category):
            raise ValueError(f"{where} has a name or a category that cannot be a file name.")
        items.append(Item(name, prompt, group=category))
    return items


FLICKERING = "temporal_flickering"


def load_vbench(path: Path) -> list[Item]:
    """VBench's VBench_full_info.json: a list of {"prompt_en", "dimension"}.

    Raises:
        ValueError: Naming the broken entry.
    """
    try:
        document = json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"'{path}' is no JSON ({error}): give VBench_full_info.json.") from error
    if not isinstance(document, list):
        raise ValueError(f"'{path}' is no list of prompts: give VBench_full_info.json.")
    items: dict[str, Item] = {}
    for number, record in enumerate(document, start=1):
        where = f"Entry {number} of '{path}'"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is no object with prompt_en and dimension.")
        prompt = _text(record, "prompt_en", where)
        dimensions = record.get("dimension")
        if not isinstance(dimensions, list) or not all(isinstance(name, str) for name in dimensions):
            raise ValueError(f"{where} has no list 'dimension'.")
        if not _SAFE.fullmatch(prompt):
            raise ValueError(f"{where} has a prompt that cannot be a file name, as VBench wants it.")
        # The scorer filters static videos of this dimension out first, so it wants more.
        samples = 25 if FLICKERING in dimensions else 5
        # A prompt comes once for each of several dimensions.
        known = items.get(prompt)
        items[prompt] = Item(prompt, prompt, samples=max(samples, known.samples if known else 0))
    return list(items.values())


Loader = Callable[[Path], Sequence[Item]]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    lines = _read(path).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"'{path}' is empty: it should hold prompts.")
    yield from enumerate(lines, start=1)


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"There is no prompts file '{path}': name the benchmark's own file.")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no UTF-8 text.") from error


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error}).") from error
    if not isinstance(document, dict):
        raise ValueError(f"{where} is no JSON object.")
    return document


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} has no text under {key!r}.")
    return value.strip()
