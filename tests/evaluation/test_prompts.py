"""Benchmarks' own prompt files: read as they are, and broken ones named by line."""

from __future__ import annotations

import json

import pytest

from stepvar.evaluation.prompts import load_dpg, load_geneval, load_lines, load_mjhq, load_vbench


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
    ]
    items = load_vbench(write(tmp_path / "VBench_full_info.json", json.dumps(records)))
    assert [(item.prompt, item.samples, item.tags) for item in items] == [
        ("a cat.", 5, ("color", "scene")), ("a dog", 25, ("temporal_flickering",)),
    ]  # fmt: skip


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
        (load_lines, "a star\n\na ring\n", "Line 2 of .* is empty"),
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
