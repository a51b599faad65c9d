"""`stepvar compare`, `stepvar bench` and `stepvar evaluate scenes`."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tiny_pipeline import PIXELS, SIDES, TOKENS

CATEGORIES = {"single object", "two objects", "counting", "colours", "position", "colour attribution"}


def test_compare_draws_a_figure(run, model_folder):
    result = run("compare", "a red star", "--model", model_folder, "--seed", 3, "--repeats", 2, "-o", "c.png")
    assert result.code == 0 and result.stderr == ""
    for word in ("dense", "pruned", "skipped", "PSNR", "SSIM", "faster", "seed 3", "c.png"):
        assert word in result.stdout
    figure = Image.open("c.png")
    assert figure.width > 3 * 5 * PIXELS and figure.height > 5 * PIXELS
    assert json.loads(figure.text["stepvar"])["seed"] == 3


def test_compare_as_json(run, model_folder, tmp_path):
    arguments = (
        "compare",
        "a red star",
        "--model",
        model_folder,
        "--repeats",
        1,
        "--json",
        "--ratios",
        "8=0.5",
    )
    document = run(*arguments).json
    assert (tmp_path / document["file"]).is_file()
    assert document["dense"]["tokens"] == TOKENS and document["pruned"]["tokens"] == TOKENS - 32
    assert document["psnr"] > 0 and -1 < document["ssim"] < 1
    assert document["settings"]["pruning"]["ratios"] == {"8": 0.5}
    assert document["dense"]["seconds"] > 0 and document["speedup"] > 0


def test_comparing_equal_pictures_is_valid_json(run, model_folder):
    arguments = (
        "compare",
        "a red star",
        "--model",
        model_folder,
        "--repeats",
        1,
        "--json",
        "--ratios",
        "8=0",
    )
    document = run(*arguments).json
    assert document["psnr"] is None and document["ssim"] == pytest.approx(1.0)


def test_bench_as_json(run, model_folder):
    result = run("bench", "--model", model_folder, "--repeats", 3, "--json")
    assert result.code == 0 and result.stderr == ""
    document = result.json
    assert document["repeats"] == 3 and document["threads"] >= 1
    assert document["torch"] and document["device"] == "cpu" and document["device_name"]
    methods = document["methods"]
    assert list(methods) == ["dense", "skip", "prune", "both", "best"]
    tokens = {name: method["tokens"] for name, method in methods.items()}
    removed = {"dense": 0, "skip": 100, "prune": 66, "both": 111, "best": 61}
    assert tokens == {name: TOKENS - count for name, count in removed.items()}
    for method in methods.values():
        spread = method["spread"]
        assert spread["min"] <= spread["q1"] <= spread["median"] <= spread["q3"] <= spread["max"]
        assert method["seconds"] == spread["median"] > 0
        assert set(method["stages"]) == {"text", "scales", "decode"}
        assert [scale["scale"] for scale in method["scales"]] == [f"{side}x{side}" for side in SIDES]
        assert method["flops"] == sum(scale["flops"] for scale in method["scales"])
    dense, both = methods["dense"], methods["both"]
    assert dense["speedup"] == dense["transformer_speedup"] == dense["flops_ratio"] == 1.0
    assert both["speedup"] == pytest.approx(dense["seconds"] / both["seconds"])
    assert both["flops_ratio"] == pytest.approx(dense["flops"] / both["flops"]) and both["flops_ratio"] > 1


def test_bench_against_the_limits_of_the_machine(run, model_folder):
    arguments = ("bench", "--model", model_folder, "--repeats", 1, "--roofline")
    result = run(*arguments)
    assert result.code == 0 and "last four" in result.stdout and "GB/s" in result.stdout
    document = run(*arguments, "--json").json
    assert document["copy_bytes_per_second"] > 0
    for method in document["methods"].values():
        for scale in method["scales"]:
            assert (scale["roofline"]["product_share"] is None) == scale["skipped"]


def test_bench_for_people(run, model_folder):
    result = run("bench", "a red star", "--model", model_folder, "--repeats", 1, "-n", 2)
    assert result.code == 0
    for word in (
        "dense",
        "skip",
        "prune",
        "both",
        "best",
        "scale 8x8",
        "decode",
        "2 at a time",
        "threads",
        "torch",
    ):
        assert word in result.stdout


@pytest.mark.parametrize("extra", [(), ("--pruning", "paper"), ("--reconstructions",)])
def test_evaluate_scenes_as_json(run, model_folder, extra):
    result = run("evaluate", "scenes", "--model", model_folder, "-n", 7, "--batch", 4, "--json", *extra)
    assert result.code == 0 and result.stderr == ""
    document = result.json
    assert document["n"] == 7 and set(document["categories"]) == CATEGORIES
    low, high = document["interval"]
    assert 0 <= low <= document["overall"] <= high <= 1
    assert set(document["aspects"]) == {
        "count", "shapes", "colours", "textures", "sizes", "position", "background",
    }  # fmt: skip
    assert document["held_out"]["n"] + document["seen"]["n"] == 7
    assert document["seconds_per_image"] > 0
    assert document["reconstructions"] == ("--reconstructions" in extra)


def test_evaluate_scenes_for_people(run, model_folder):
    result = run("evaluate", "scenes", "--model", model_folder, "-n", 2)
    assert result.code == 0
    for word in (*CATEGORIES, "overall", "95 %", "textures", "held-out"):
        assert word in result.stdout
