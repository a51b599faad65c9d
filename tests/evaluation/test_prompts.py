"""Benchmarks' own prompt files: read as they are, and broken ones named by line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import utils

from stepvar.evaluation.benchmarks import BENCHMARKS
from stepvar.evaluation.prompts import find_prompts, load_lines

load_geneval, load_dpg, load_mjhq, load_vbench = (
    BENCHMARKS[name].load_items for name in ("geneval", "dpg", "mjhq", "vbench")
)
OWN_FILES = {benchmark.name: benchmark.own_file for benchmark in BENCHMARKS.values()}


def write(path, text):
    path.write_text(text, "utf-8")
    return path


def test_geneval(tmp_path):
    lines = [json.dumps({"tag": "colors", "include": [], "prompt": f"a photo of {n} cups"}) for n in "ab"]
    items = load_geneval(write(tmp_path / "evaluation_metadata.jsonl", "\n".join(lines) + "\n\n"))
    assert [(item.name, item.prompt, item.group) for item in items] == [
        ("00000", "a photo of a cups", "colors"), ("00001", "a photo of b cups", "colors"),
    ]  # fmt: skip
    assert [item.line for item in items] == lines


def test_dpg_from_a_folder_and_from_its_table(tmp_path):
    write(tmp_path / "9.txt", "a long\nprompt \n")
    write(tmp_path / "10.txt", "another")
    assert [(item.name, item.prompt) for item in load_dpg(tmp_path)] == [
        ("10", "another"), ("9", "a long prompt"),
    ]  # fmt: skip
    quoted = '9,"a long, quoted\nprompt",'
    table = f"item_id,text,question\n{quoted}is it?\n{quoted}red?\n10,other,x\n"
    assert [(item.name, item.prompt) for item in load_dpg(write(tmp_path / "dpg.csv", table))] == [
        ("9", "a long, quoted\nprompt"), ("10", "other"),
    ]  # fmt: skip


def test_mjhq_and_vbench(tmp_path):
    document = {"0a1": {"category": "food", "prompt": "soup"}, "0a2": {"category": "art", "prompt": "a vase"}}
    items = load_mjhq(write(tmp_path / "meta_data.json", json.dumps(document)))
    assert [(item.name, item.group, item.prompt) for item in items] == [
        ("0a1", "food", "soup"), ("0a2", "art", "a vase"),
    ]  # fmt: skip
    records = [
        {"prompt_en": "a cat.", "dimension": ["color"]},
        {"prompt_en": "a dog", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a cat.", "dimension": ["scene"]},
        # As long as VBench's own longest one.
        {"prompt_en": "x" * 210, "dimension": ["scene"]},
    ]
    items = load_vbench(write(tmp_path / "VBench_full_info.json", json.dumps(records)))
    assert [(item.prompt, item.samples) for item in items] == [
        ("a cat.", 5), ("a dog", 25), ("x" * 210, 5),
    ]  # fmt: skip


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_feeds_end_a_line(tmp_path, separator):
    """Python's own splitlines would break a JSON string at other separators of Unicode."""
    prompt = f"a red{separator}star"
    line = json.dumps({"tag": "x", "prompt": prompt}, ensure_ascii=False)
    if separator < " ":
        line = json.dumps({"tag": "x", "prompt": prompt})
    items = load_geneval(write(tmp_path / "prompts", f"{line}\r\n{line}\n"))
    assert [item.prompt for item in items] == [prompt, prompt]
    assert load_lines(write(tmp_path / "lines", f"{prompt}\na ring")) == [prompt, "a ring"]


def test_names_that_are_not_utf8_are_refused(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"\xff.txt")).write_text("a cup")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(ValueError, match="cannot be a file name"):
        load_dpg(folder)


GOOD = '{"tag": "x", "prompt": "a cup"}\n'


@pytest.mark.parametrize(
    ("load", "text", "words"),
    [
        (load_geneval, GOOD + "{broken\n", "Line 2 of .* is no JSON"),
        (load_geneval, GOOD + GOOD + "\n" + GOOD, "Line 3 of .* is no JSON"),
        (load_geneval, GOOD + '{"tag": "x", "prompt": " "}', "Line 2 of .* no text under 'prompt'"),
        (load_geneval, GOOD + '{"prompt": "a cup"}', "Line 2 of .* no text under 'tag'"),
        (load_geneval, GOOD + "[1]", "Line 2 of .* is no JSON object"),
        (load_geneval, "\n \n", "is empty"),
        (load_dpg, "item,prompt\n1,a", "no columns item_id and text"),
        (load_dpg, "item_id,text\n1,a\n2,\n", "Line 3 of .* no text under 'text'"),
        (load_dpg, "item_id,text\n../x,a\n", "Line 2 of .* cannot be a file name"),
        (load_mjhq, '{"a": {"category": "food", "prompt": 3}}', "Entry 1 .'a'. of .* no text under 'prompt'"),
        (load_mjhq, '{"a": 1}', "Entry 1 .'a'. of .* is no object"),
        (load_mjhq, '{"../a": {"category": "food", "prompt": "x"}}', "cannot be a file name"),
        (load_vbench, "{}", "is no list"),
        (load_vbench, '[{"prompt_en": "a", "dimension": []}, {"prompt_en": "b"}]', "Entry 2 .* 'dimension'"),
        (load_vbench, '[{"prompt_en": "a/b", "dimension": []}]', "Entry 1 of .* cannot be a file name"),
        (load_vbench, f'[{{"prompt_en": "{"x" * 250}", "dimension": []}}]', "cannot be a file name"),
        (load_lines, "a star\n\na ring\n", "Line 2 of .* is empty"),
        (load_mjhq, "{}", "holds no prompts: give MJHQ-30K's meta_data.json"),
        (load_vbench, "[]", "holds no prompts"),
        (load_dpg, "item_id,text\n", "holds no prompts"),
        (load_dpg, f"item_id,text\n1,a\n2,{'x' * 131_073}\n", "Line 3 of .* is no CSV .field larger than"),
        (load_dpg, "item_id,text\n1,a\n2,b\n1,other\n", "Line 4 of .* has another text for the item_id '1'"),
        (load_dpg, "item_id,text\n..,a\n", "Line 2 of .* cannot be a file name"),
        (load_mjhq, '{"a": {"category": "x", "prompt": "y"}, "a": {"category": "x", "prompt": "z"}}',
         "no JSON .the key 'a' is there twice"),
        (load_geneval, GOOD + '{"tag": "x", "prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        *((load_mjhq, json.dumps({"a": {"category": name, "prompt": "x"}}), "cannot be a file name")
          for name in (".", "..", "a/b", "a\\b", "a\tb", "\x7f", "星" * 81)),
        *((load_mjhq, json.dumps({name: {"category": "x", "prompt": "x"}}), "cannot be a file name")
          for name in ("", ".", "..", "\ud800", "x" * 241)),
        (load_mjhq, '{"a": {"category": "\\ud800", "prompt": "x"}}', "'category' that is not valid Unicode"),
        (load_geneval, '{"tag": "x", "prompt": "half a \\udc00"}', "'prompt' that is not valid Unicode"),
        (load_vbench, json.dumps([{"prompt_en": "星" * 81, "dimension": []}]), "243 bytes, more than 240"),
        (load_geneval, '{"prompt": ' + "[" * 100_000, "Line 1 of .* nested too deeply"),
        (load_mjhq, '{"a": ' * 100_000, "nested too deeply"),
        (load_vbench, "[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_broken_prompts_are_named(tmp_path, load, text, words):
    with pytest.raises(ValueError, match=words):
        load(write(tmp_path / "prompts", text))


@pytest.mark.parametrize("load", [load_geneval, load_dpg, load_mjhq, load_vbench, load_lines])
def test_absent_or_foreign_files(tmp_path, load):
    with pytest.raises(ValueError, match="no prompts file"):
        load(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8"):
        load(tmp_path / "binary")


def test_an_empty_folder_of_prompts(tmp_path):
    with pytest.raises(ValueError, match=r"no \.txt files"):
        load_dpg(tmp_path)
    write(tmp_path / "1.txt", " \n")
    with pytest.raises(ValueError, match=r"1\.txt' is empty"):
        load_dpg(tmp_path)


def test_prompts_of_a_data_set_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(data_set, file, repo_type):
        asked.append((data_set, file, repo_type))
        return str(write(tmp_path / "kept", GOOD))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert [
        item.prompt for item in load_geneval(find_prompts(Path("org/name:in/it.jsonl"), "absent.jsonl"))
    ] == ["a cup"]
    for own_file in OWN_FILES.values():
        assert find_prompts(Path("org/na.me-2"), own_file) == tmp_path / "kept"
    assert asked == [
        ("org/name", "in/it.jsonl", "dataset"),
        *(("org/na.me-2", file, "dataset") for file in OWN_FILES.values()),
    ]

    # What is here, and what can only be a path, is never asked for.
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name:x").write_text("")
    for path in (
        "org/name",
        "org/name:x",
        "absent",
        "org/absent.jsonl",
        "../a/b",
        "/a/b",
        "a/b/c",
        "org/other:",
    ):
        assert find_prompts(Path(path), "dpg_bench.csv") == Path(path)
    assert len(asked) == 1 + len(OWN_FILES)


def hub_error(kind):
    """An error of the hub's, whatever this version of its library wants to make one."""
    return kind.__new__(kind, "details")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            hub_error(utils.LocalEntryNotFoundError),
            "the hub was not reached, and 'x.json' was not downloaded",
        ),
        (hub_error(utils.EntryNotFoundError), "it has no file 'x.json', name one as org/name:PATH"),
        (hub_error(utils.RepositoryNotFoundError), "the hub has none of that name, or not for you"),
        (utils.HFValidationError("too long"), "HFValidationError: too long"),
        (TimeoutError("slow"), "TimeoutError: slow"),
    ],
)
def test_data_sets_that_cannot_be_read_are_named(monkeypatch, error, words):
    def download(*_given, **_named):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match=f"the data set 'org/name' cannot be read: {words}"):
        find_prompts(Path("org/name:x.json"), "y.json")
