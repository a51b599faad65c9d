"""Editing by an instruction from the command line: a picture in, a picture of its size out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tiny_varedit import make_source, make_varedit_pipeline

PROMPT = "a red star"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved VAREdit with random weights; tests must not change it."""
    path = tmp_path_factory.mktemp("varedit") / "tiny"
    make_varedit_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def source(tmp_path):
    """A picture to edit, which is no square."""
    make_source(90, 50).save(tmp_path / "source.png")
    return "source.png"


def test_generate_edits_a_picture(run, folder, source, tmp_path):
    base = ("generate", PROMPT, "--model", folder, "--image", source, "--seed", 3)
    result = run(*base, "-n", 2, "--batch", 1, "--json")
    assert result.code == 0, result.stderr
    assert result.json["settings"]["source_sizes"] == [[90, 50]] * 2
    drawn = Image.open(tmp_path / result.json["images"][1]["file"])
    assert drawn.size == (90, 50) and drawn.format == "PNG"
    settings = json.loads(drawn.text["stepvar"])
    assert (settings["source_size"], settings["fit"], settings["seed"]) == ([90, 50], "pad", 4)
    cropped = run(*base, "--fit", "crop", "--pruning", "paper", "-o", "cropped.png")
    assert cropped.code == 0, cropped.stderr
    assert Image.open(tmp_path / "cropped.png").size == (50, 50)


def test_edit_takes_the_instruction(run, folder, source, tmp_path):
    base = ("edit", source, PROMPT, "--model", folder, "--seed", 3)
    assert run("generate", PROMPT, "--model", folder, "--image", source, "--seed", 3, "-o", "a.png").code == 0
    result = run(*base, "-o", "b.png", "--sheet", "sheet.png")
    assert result.code == 0, result.stderr
    called, edited = Image.open("a.png"), Image.open("b.png")
    assert edited.tobytes() == called.tobytes()
    masked = run(*base, "--box", "0.5,0,0.5,1", "-o", "c.png", "--pruning", "prune")
    assert masked.code == 0, masked.stderr
    assert (
        Image.open("c.png").crop((0, 0, 45, 50)).tobytes()
        == Image.open(source).crop((0, 0, 45, 50)).tobytes()
    )
    told = run(*base, "--box", "0.5,0,0.5,1", "--summary", "--json")
    assert told.code == 0 and told.json["prefix"]["tokens"] == 64
    for option, value in (("--strength", 0.5), ("--outpaint", "8,0,0,0"), ("--margin", 1)):
        refused = run(*base, option, value)
        assert refused.code == 2 and "means nothing to VAREditPipeline" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_summary_counts_the_source(run, folder):
    told = run("summary", "--model", folder, "--json").json
    assert told["prefix"]["name"] == "source" and told["prefix"]["tokens"] == 64
    assert told["flops"] > sum(scale["flops"] for scale in told["scales"])
    table = run("summary", "--model", folder, "--pruning", "paper").stdout
    assert table.splitlines()[1].split()[0] == "source"


def test_compare_and_bench_take_a_picture(run, folder, source):
    short = ("--model", folder, "--image", source, "--repeats", 1, "--json")
    compared = run("compare", PROMPT, *short, "--seed", 1, "-o", "c.png")
    assert compared.code == 0, compared.stderr
    measured = run("bench", PROMPT, *short)
    assert measured.code == 0, measured.stderr
    assert set(measured.json["methods"]) >= {"dense", "both"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VAREdit edits a picture: give one by image= (--image FILE)"),
        (["--image", "none.png"], "There is no picture 'none.png'"),
        (["--image", "source.png", "--fit", "stretch"], "fit is 'stretch'; known are pad, crop"),
        (["--image", "source.png", "-o", "source.png"], "is read by this command"),
        (["--image", "source.png", "-o", "x.mp4"], "this one draws pictures"),
        (["--image", "source.png", "--size", "80x80"], "No scale schedule draws 80x80 pixels"),
        (["--image", "source.png", "--kind", "varedit"], "is a whole pipeline: leave"),
        (["--image", "source.png", "--seconds", "1"], "--seconds means nothing to VAREditPipeline"),
    ],
)
def test_one_sentence_for_what_cannot_be(run, folder, source, tmp_path, arguments, words):
    before = (tmp_path / source).read_bytes()
    result = run("generate", PROMPT, "--model", folder, *arguments)
    assert result.code == 2 and words in result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [source]
    assert (tmp_path / source).read_bytes() == before


def test_a_model_of_prompts_alone_takes_no_picture(run, model_folder, source):
    result = run("generate", PROMPT, "--model", model_folder, "--image", source)
    assert result.code == 2 and "--image means nothing to InfinityPipeline" in result.stderr


def test_convert_names_the_model(run, tmp_path):
    weights = Path(__file__).parents[1] / "golden" / "varedit" / "tiny_d16"
    files = (weights / "transformer.safetensors", weights / "vae.safetensors")
    refused = run("convert", *files, "new", "--model", "varedit")
    assert refused.code == 2 and "--resolution" in refused.stderr
    done = run("convert", *files, "new", "--model", "varedit", "--resolution", 256, "--json")
    assert done.code == 0, done.stderr
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert index["_class_name"] == "VAREditPipeline"
    told = run("summary", "--model", files[0], "--vae", files[1], "--kind", "varedit", "--json")
    assert told.code == 2 and "--resolution" in told.stderr
    told = run("summary", "--model", "new", "--json")
    assert told.json["prefix"]["tokens"] == 256
