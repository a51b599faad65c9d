"""The same commands on models of another kind: the folder says which, no option does."""

from __future__ import annotations

import json

import pytest
from PIL import Image

NAMES = ["tench", "goldfish", "great white shark", "crane", "hen", "crane"]


@pytest.fixture(scope="session")
def var_folder(tmp_path_factory):
    """A saved VAR whose classes have names; tests must not change it."""
    from tiny_var import make_var_pipeline

    folder = tmp_path_factory.mktemp("var") / "tiny"
    make_var_pipeline(NAMES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def switti_folder(tmp_path_factory):
    """A saved Switti; tests must not change it."""
    from tiny_switti import make_switti_pipeline

    folder = tmp_path_factory.mktemp("switti") / "tiny"
    make_switti_pipeline().save_pretrained(folder)
    return folder


def test_classes_by_number_and_by_name(run, var_folder, tmp_path):
    result = run("generate", "1", "goldfish", "--model", var_folder, "--seed", 3, "--smooth", "--json")
    assert result.code == 0, result.stderr
    first, second = result.json["images"]
    assert (first["prompt"], second["prompt"]) == ("1", "goldfish")
    assert result.json["settings"]["class_labels"] == [1, 1]
    settings = json.loads(Image.open(tmp_path / second["file"]).text["stepvar"])
    assert settings["prompt"] == "goldfish" and settings["smooth"] is True
    assert "class_labels" not in settings and settings["seed"] == 4


def test_pictures_of_classes_in_several_batches(run, var_folder):
    result = run("generate", "0", "-n", 3, "--batch", 2, "--model", var_folder, "--seed", 1, "--json")
    assert result.code == 0, result.stderr
    assert result.json["settings"]["class_labels"] == [0, 0, 0]
    assert result.json["seeds"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["6"], "The class 6 is out of range: this model draws classes 0 to 5"),
        (["dog"], "No class is called 'dog'"),
        (["crane"], "2 classes are called 'crane'"),
        (["0", "--negative", "x"], "--negative means nothing to VARPipeline"),
        (["0", "--temperature", "1", "--aspect", "4:3"], "--aspect and --temperature mean nothing"),
        (["0", "--size", "64x64"], "draws 32x32 pixels only, not 64x64"),
    ],
)
def test_what_a_model_of_classes_cannot_draw(run, var_folder, tmp_path, arguments, words):
    result = run("generate", *arguments, "--model", var_folder)
    assert result.code == 2 and words in result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["var", "switti"])
def test_summary_compare_and_bench(run, kind, request):
    folder = request.getfixturevalue(f"{kind}_folder")
    told = run("summary", "--model", folder, "--pruning", "prune", "--json")
    assert told.code == 0 and told.json["scales"][-1]["kept"] == 16
    inputs = "hen" if kind == "var" else "a red ring"
    short = ("--model", folder, "--repeats", 1, "--json")
    compared = run("compare", inputs, *short, "--seed", 1, "-o", "c.png")
    assert compared.code == 0, compared.stderr
    assert compared.json["prompt"] == inputs
    words = [] if kind == "var" else ["a ring"]
    measured = run("bench", *words, *short)
    assert measured.code == 0, measured.stderr
    assert set(measured.json["methods"]) >= {"dense"}


def test_smoothing_means_nothing_to_bits(run, model_folder):
    result = run("generate", "a red star", "--smooth", "--model", model_folder)
    assert result.code == 2 and "--smooth means nothing to InfinityPipeline" in result.stderr


def test_text_to_image_with_switti(run, switti_folder):
    result = run(
        "generate", "a red ring", "--model", switti_folder, "--negative", "big", "--seed", 1, "--json"
    )
    assert result.code == 0, result.stderr
    assert result.json["settings"]["negative_prompts"] == ["big"]
    long = run("generate", "a " * 20, "--model", switti_folder)
    assert long.code == 2 and "22 tokens, but the model reads at most 12" in long.stderr
