"""The commands on HART: from published folders to pictures, with no option that names the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_hart import make_language_model, make_tokenizer, write_published

CASE = Path(__file__).parents[1] / "golden" / "hart" / "t2i_adaln_shared"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """What a user downloads: llm/ and tokenizer/, and the language model."""
    folder = tmp_path_factory.mktemp("published")
    write_published(folder)
    make_language_model().save_pretrained(folder / "qwen")
    make_tokenizer().save_pretrained(folder / "qwen")
    return folder


def test_from_published_folders_to_pictures(run, published, tmp_path):
    parts = (published / "llm", published / "tokenizer")
    result = run("convert", *parts, tmp_path / "tiny", "--text-encoder", published / "qwen")
    assert result.code == 0, result.stderr
    model = ("--model", tmp_path / "tiny", "--json")
    told = run("summary", "--pruning", "paper", *model)
    assert [scale["kept"] for scale in told.json["scales"]] == [1, 4, 9, 16, 18, 16]
    assert told.json["flops"] < told.json["dense_flops"]
    prompt = "a red ring on sand two big star"
    drawn = run("generate", prompt, "--seed", 3, "--negative", "green", "--pruning", "fastvar", *model)
    assert drawn.code == 0, drawn.stderr
    assert (tmp_path / drawn.json["images"][0]["file"]).is_file()
    assert "has 8 tokens, but the model reads 7; ignored is 'star'" in drawn.stderr
    compared = run("compare", "a ring", "--repeats", 1, "--seed", 1, "-o", "c.png", *model)
    assert compared.code == 0, compared.stderr
    measured = run("bench", "a ring", "--repeats", 1, *model)
    assert measured.code == 0, measured.stderr


def test_golden_cases_are_run_by_their_folder(run):
    result = run("conformance", CASE, "--json")
    assert result.code == 0, result.stderr
    assert result.json["passed"]
    assert result.json["uncompared"] == []
