"""How videos are drawn and measured from the command line: their length, beginning, tiles."""

from __future__ import annotations

import pytest
from PIL import Image

from tiny_star import STEPS_OF_CLIP, STEPS_OF_PICTURE, make_star_pipeline

PROMPT = "a red circle on grass"


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    """A saved video pipeline with random weights, up to two seconds; tests must not change it."""
    folder = tmp_path_factory.mktemp("star") / "tiny"
    make_star_pipeline().save_pretrained(folder)
    return folder


def test_bench_measures_a_length(run, star):
    result = run("bench", PROMPT, "--model", star, "--seconds", 2, "--repeats", 1, "-n", 2, "--json")
    assert result.code == 0, result.stderr
    methods = result.json["methods"]
    # The paper's plan skips no step of this model.
    assert list(methods) == ["dense", "skip", "prune", "paper"]
    assert len(methods["dense"]["scales"]) == STEPS_OF_PICTURE + 2 * STEPS_OF_CLIP
    assert not any(scale["skipped"] for scale in methods["paper"]["scales"])
    assert result.json["video_seconds"] == 2
    assert methods["dense"]["flops"] > methods["paper"]["flops"]


def test_bench_measures_what_is_left_after_a_beginning(run, star, tmp_path):
    Image.new("RGB", (80, 48), (200, 40, 40)).save(tmp_path / "first.png")
    more = ("--image", "first.png", "--posterior", "mean", "--tile", 4, "--guidance-threshold", 0)
    result = run("bench", PROMPT, "--model", star, "--seconds", 1, "--repeats", 1, *more)
    assert result.code == 0, result.stderr
    assert "80 x 48 pixels, 1 s of video, 1 a call" in result.stdout
    # Of the picture only the last step runs.
    assert result.stdout.count("scale 3x5 ") == 1


def test_compare_takes_a_length(run, star):
    base = ("compare", PROMPT, "--model", star, "--seed", 1, "--repeats", 1, "--json")
    result = run(*base, "--seconds", 2)
    assert result.code == 0, result.stderr
    assert result.json["settings"]["seconds"] == 2
    assert len(result.json["dense"]["scales"]) == STEPS_OF_PICTURE + 2 * STEPS_OF_CLIP
    refused = run(*base, "--seconds", 2, "--pruning", "10s-1.4x")
    assert refused.code == 2 and "ask for 10 seconds" in refused.stderr


def test_generate_passes_the_options_of_videos(run, star):
    base = ("generate", PROMPT, "--model", star, "--seconds", 1, "--seed", 3, "-o", "clip.gif")
    result = run(*base, "--tile", 4, "--guidance-threshold", 0.5, "--posterior", "mean", "--json")
    assert result.code == 0, result.stderr
    settings = result.json["settings"]
    assert (settings["guidance_threshold"], settings["posterior"]) == (0.5, "mean")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--posterior", "best"], "Unknown posterior 'best'; known are sample, mean"),
        (["--guidance-threshold", -1], "guidance_threshold is -1; it must be 0 (off) or more"),
        (["--tile", 1], "--tile"),
    ],
)
def test_one_sentence_for_what_cannot_be(run, star, arguments, message):
    result = run("generate", PROMPT, "--model", star, *arguments)
    assert result.code == 2 and message in result.stderr


def test_models_of_pictures_have_no_use_for_them(run, model_folder):
    for command in ("bench", "compare"):
        result = run(command, "a red star", "--model", model_folder, "--seconds", 5)
        assert result.code == 2 and "--seconds means nothing to InfinityPipeline" in result.stderr
    result = run("generate", "a red star", "--model", model_folder, "--tile", 24)
    assert result.code == 2 and "--tile means nothing to InfinityPipeline" in result.stderr
