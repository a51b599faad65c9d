"""`stepvar generate` and `stepvar summary`."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from tiny_pipeline import PIXELS, SIDES, TOKENS

PROMPT = "two yellow stars above a striped blue ring on sand"


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_picture_a_table_and_a_name(run, model_folder, tmp_path):
    result = run("generate", PROMPT, "--model", model_folder, "--seed", 3)
    assert result.code == 0 and result.stderr == ""
    [path] = tmp_path.iterdir()
    assert path.name == "two-yellow-stars-above-a-striped-blue-ring-on-sand-3.png"
    assert pixels(path).shape == (PIXELS, PIXELS, 3)
    for word in ("text", "scale 8x8", "decode", "total", str(TOKENS), "peak memory", path.name, "seed 3"):
        assert word in result.stdout


def test_json_is_the_only_output_and_complete(run, model_folder, tmp_path):
    result = run("generate", PROMPT, "--model", model_folder, "--seed", 3, "--pruning", "paper", "--json")
    assert result.code == 0 and result.stderr == ""
    document = result.json
    assert document["tokens"] == {"kept": 1 + 4 + (9 - 3) + (16 - 8), "total": TOKENS}
    assert set(document["stages"]) == {"text", "scales", "decode"}
    assert document["peak_bytes"] > 0 and document["seconds"] > 0
    assert [scale["scale"] for scale in document["scales"]] == [f"{side}x{side}" for side in SIDES]
    assert [scale["skipped"] for scale in document["scales"]] == [False] * 4 + [True] * 2
    [image] = document["images"]
    assert image["prompt"] == PROMPT and image["seed"] == 3 and (tmp_path / image["file"]).is_file()
    assert set(document["versions"]) == {"stepvar", "torch", "diffusers", "transformers"}


def test_the_picture_carries_its_settings(run, model_folder):
    arguments = ("--ratios", "6=0.5,8=0.75", "--negative", "a red star", "--guidance", "2,2,2,2,1.5,1")
    assert run("generate", PROMPT, "--model", model_folder, "--seed", 3, *arguments, "-o", "x.png").code == 0
    settings = json.loads(Image.open("x.png").text["stepvar"])
    assert settings["prompt"] == PROMPT and settings["negative_prompt"] == "a red star"
    assert settings["seed"] == 3 and settings["width"] == settings["height"] == PIXELS
    assert settings["guidance_scale"] == [2, 2, 2, 2, 1.5, 1]
    assert settings["dtype"] == "float32" and settings["batch"] == 1
    assert settings["pruning"]["ratios"] == {"6": 0.5, "8": 0.75}
    assert settings["scales"][-1] == {"scale": "8x8", "kept": 16, "skipped": False}
    assert "torch" in settings["versions"]


def test_the_same_picture_with_and_without_progress(run, model_folder, monkeypatch):
    arguments = ("generate", PROMPT, "--model", model_folder, "--seed", 5, "--pruning", "prune", "-o")
    assert run(*arguments, "plain.png").code == 0
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _stream: True, raising=False)
    shown = run(*arguments, "watched.png")
    assert shown.code == 0 and "drawing" in shown.stderr
    assert np.array_equal(pixels("plain.png"), pixels("watched.png"))
    assert run(*arguments[:-1], "--seed", 6, "-o", "other.png").code == 0
    assert not np.array_equal(pixels("plain.png"), pixels("other.png"))


def test_what_the_settings_say_draws_the_picture_again(run, model_folder):
    first = run("generate", PROMPT, "--model", model_folder, "--json").json["images"][0]
    again = run("generate", PROMPT, "--model", model_folder, "--seed", first["seed"], "-o", "again.png")
    assert again.code == 0
    assert np.array_equal(pixels(first["file"]), pixels("again.png"))


def test_several_prompts_and_pictures_into_a_new_folder(run, model_folder, tmp_path):
    result = run(
        "generate", "a red star", "a blue ring", "--model", model_folder,
        "-n", 2, "--batch", 3, "--seed", 7, "-o", "new", "--json",
    )  # fmt: skip
    images = result.json["images"]
    assert [(image["prompt"], image["seed"]) for image in images] == [
        ("a red star", 7),
        ("a red star", 8),
        ("a blue ring", 9),
        ("a blue ring", 10),
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "a-blue-ring-10.png",
        "a-blue-ring-9.png",
        "a-red-star-7.png",
        "a-red-star-8.png",
    ]
    assert result.json["seeds"] == [7, 8, 9, 10]


def test_one_file_name_for_several_pictures_is_numbered(run, model_folder, tmp_path):
    assert run("generate", "a red star", "--model", model_folder, "-n", 2, "-o", "new/out.png").code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out-1.png", "out-2.png"]


def test_suggested_names_never_overwrite(run, model_folder, tmp_path):
    for _ in range(2):
        assert run("generate", "a red star", "--model", model_folder, "--seed", 1).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-red-star-1-2.png", "a-red-star-1.png"]


def test_none_is_dense(run, model_folder):
    for name, extra in (("a.png", ()), ("b.png", ("--pruning", "none")), ("c.png", ("--ratios", "8=0"))):
        assert (
            run("generate", "a red star", "--model", model_folder, "--seed", 1, *extra, "-o", name).code == 0
        )
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert np.array_equal(pixels("a.png"), pixels("c.png"))


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        (("--pruning", "prune"), TOKENS - 18 - 48),
        (("--pruning", "skip"), TOKENS - 36 - 64),
        (("--ratios", "6=0.5", "--skip", "8"), TOKENS - 18 - 64),
        (("--ratios", "-2=0.5", "--skip", "-1"), TOKENS - 18 - 64),
        (("--ratios", "8=1"), TOKENS - 64),
        (("--pruning", "fastvar"), 1 + 4 + (9 - 3) + (16 - 8)),
        (("--pruning", "sparsevar-standin"), 1 + 4 + (9 - 3) + (16 - 8)),
        (("--pruning", "unguided"), TOKENS),
        (("--pruning", "scalekv"), TOKENS),
        (("--method", "fastvar", "--ratios", "6=0.5", "--skip", "8"), TOKENS - 18 - 64),
    ],
)
def test_plans_keep_what_they_promise(run, model_folder, extra, kept):
    planned = run("summary", "--model", model_folder, *extra, "--json").json
    ran = run("generate", "a red star", "--model", model_folder, *extra, "--json").json
    assert planned["tokens"] == ran["tokens"]["kept"] == kept
    assert planned["dense_tokens"] == TOKENS


def test_what_methods_save_is_in_the_summary_and_in_the_report(run, model_folder):
    def both(*extra: str) -> tuple[dict, dict]:
        settings = ("--model", model_folder, *extra, "--json")
        return run("summary", *settings).json, run("generate", "a red star", "--seed", 1, *settings).json

    dense, drawn = both()
    limited, remembering = both("--pruning", "scalekv")
    assert limited["cache_bytes"] == remembering["cache_bytes"] < dense["cache_bytes"] == drawn["cache_bytes"]
    unguided, halved = both("--pruning", "unguided")
    assert [scale["rows"] for scale in unguided["scales"]] == [2, 2, 2, 2, 1, 1]
    assert [scale["rows"] for scale in halved["scales"]] == [2, 2, 2, 2, 1, 1]
    assert unguided["flops"] < 0.65 * dense["flops"]
    most, judged = both("--pruning", "skipvar")
    assert most["decides_per_picture"] and not dense["decides_per_picture"]
    assert judged["settings"]["pruning"] == {"method": "SkipVAR", "target": 0.84, "pruning": None}
    assert judged["tokens"]["kept"] <= most["tokens"] == TOKENS


def test_number_formats(run, model_folder):
    for dtype in ("bfloat16", "float16"):
        result = run("generate", "a red star", "--model", model_folder, "--dtype", dtype, "--json")
        assert result.json["settings"]["dtype"] == dtype


def test_sizes_that_exist(run, model_folder):
    size = ("--size", f"{PIXELS}x{PIXELS}")
    assert run("summary", "--model", model_folder, *size, "--json").json["dense_tokens"] == TOKENS
    wide = run("summary", "--model", model_folder, "--aspect", "16:9", "--json")
    assert wide.code == 0 and "nearest" in wide.stderr and wide.json["dense_tokens"] == TOKENS


def test_summary_is_a_table_for_people(run, model_folder):
    result = run("summary", "--model", model_folder, "--pruning", "paper")
    assert "skipped" in result.stdout and "GFLOP" in result.stdout and "8x8" in result.stdout


def test_pictures_may_be_computed_each_by_itself(run, model_folder):
    arguments = ("--model", model_folder, "--seed", 3, "--dtype", "bfloat16", "-n", 3, "--batch-invariant")
    several = run("generate", PROMPT, *arguments, "--batch", 3, "-o", "all", "--json")
    assert several.code == 0 and several.json["settings"]["batch_invariant"] is True
    last = several.json["images"][2]["file"]
    alone = run("generate", PROMPT, *arguments[:2], "--seed", 5, "--dtype", "bfloat16", "-o", "one.png")
    assert alone.code == 0
    assert np.array_equal(np.asarray(Image.open(last)), np.asarray(Image.open("one.png")))
    settings = json.loads(Image.open(last).text["stepvar"])
    assert settings["batch_invariant"] is True and settings["batch"] == 1
    summary = ("summary", "--model", model_folder, "-n", 3, "--json")
    together, apart = run(*summary).json, run(*summary, "--batch-invariant").json
    assert apart["flops"] == together["flops"] and 3 * apart["cache_bytes"] == together["cache_bytes"]
