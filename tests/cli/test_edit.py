"""`stepvar edit` and `stepvar evaluate edits`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tiny_pipeline import PIXELS, SIDES

PROMPT = "a red star on sand"
BOX = "0,0,16,16"


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


def pixels(path):
    return np.asarray(Image.open(path))


def test_only_the_box_changes_and_the_settings_are_inside(run, model_folder, picture, tmp_path):
    arguments = ("edit", picture, PROMPT, "--model", model_folder, "--box", BOX, "--seed", 3)
    result = run(*arguments, "--sheet", "sheet.png")
    assert result.code == 0 and result.stderr == ""
    assert "encode" in result.stdout and "scale 8x8" in result.stdout
    before, after = pixels(picture), pixels("photo-edited-3.png")
    assert np.array_equal(before[16:], after[16:]) and np.array_equal(before[:, 16:], after[:, 16:])
    assert not np.array_equal(before, after)
    settings = json.loads(Image.open("photo-edited-3.png").text["stepvar"])
    assert settings["prompt"] == PROMPT and settings["pruning"] == "region" and settings["seed"] == 3
    assert settings["edit"]["mask_share"] == [0.0625] and settings["edit"]["margin"] == 1
    assert pixels("sheet.png").shape == (PIXELS, 3 * PIXELS + 16, 3)
    shares = [BOX if argument == BOX else argument for argument in arguments]
    shares[shares.index(BOX)] = "0,0,0.25,0.25"
    assert run(*shares, "-o", "again.png").code == 0
    assert np.array_equal(pixels("again.png"), after)


def test_masks_borders_variations_and_raw_pictures(run, model_folder, picture):
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 8, 8))
    mask.save("mask.png")
    start = ("edit", picture, PROMPT, "--model", model_folder, "--seed", 3)
    masked = run(*start, "--mask", "mask.png", "-o", "masked.png", "--pruning", "prune", "--json")
    assert masked.code == 0 and "Note: the mask was resized from 32x32 to 64x64." in masked.stderr
    assert [scale["scale"] for scale in masked.json["scales"]] == [f"{side}x{side}" for side in SIDES]
    assert masked.json["settings"]["edit"]["notes"] == [["the mask was resized from 32x32 to 64x64"]]
    assert np.array_equal(pixels("masked.png")[16:], pixels(picture)[16:])
    assert run(*start, "--outpaint", "8,0,8,0", "-o", "wide.png").code == 0
    assert np.array_equal(pixels("wide.png")[:, 8:-8], pixels(picture))
    assert run(*start, "--strength", 0.5, "-o", "varied.png", "-n", 2).code == 0
    assert not np.array_equal(pixels("varied-1.png"), pixels("varied-2.png"))
    assert run(*start, "--box", BOX, "--raw", "-o", "raw.png").code == 0
    assert not np.array_equal(pixels("raw.png")[16:], pixels(picture)[16:])


def test_the_summary_says_what_would_run(run, model_folder, picture, tmp_path):
    start = ("edit", picture, PROMPT, "--model", model_folder, "--box", BOX, "--margin", 0, "--summary")
    shown = run(*start)
    assert shown.code == 0 and "fewer transformer FLOPs than dense" in shown.stdout
    document = run(*start, "--json").json
    assert [scale["kept"] for scale in document["scales"]] == [1, 4, 1, 1, 4, 4]
    assert document["flops"] < document["dense_flops"]
    dense = run(*start, "--pruning", "none", "--json").json
    assert dense["flops"] == dense["dense_flops"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"], "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Nothing says what may change"),
        (("--box", "0,0,64,64"), "covers the whole picture"),
        (("--box", "0,0,65,1"), "does not lie in the picture"),
        (("--box", "0,0,8"), "give 4 whole numbers such as 0,0,128,128"),
        (("--box", "0,0,0.5,x"), "or shares of the picture's sides"),
        (("--outpaint", "0,0,0,0"), "a border of 1 pixel or more"),
        (("--mask", "none.png"), "There is no picture 'none.png'"),
        (("--mask", "empty.png"), "The mask is empty"),
        (("--mask", "wide.png"), "The mask is 64x32 pixels and the picture 64x64"),
        (("--strength", "1"), "nothing of the picture would stay"),
        (("--strength", "nan"), "strength of the edit is nan; give a finite number"),
        (("--box", BOX, "--size", "65x65"), "No scale schedule draws 65x65 pixels"),
        (("--box", BOX, "--fit", "squeeze"), "Unknown fit 'squeeze'"),
        (("--box", BOX, "--margin", "-1"), "both are 0 or more"),
        (("--box", BOX, "--feather", "-1"), "a width in pixels, 0 or more"),
        (("--box", BOX, "--pruning", "bset"), "Unknown pruning preset 'bset'"),
        (("--box", BOX, "--sheet", "sheet.gif"), "is no .png or .jpg or .jpeg file"),
        (("--box", BOX, "-o", "a.png", "--sheet", "./a.png"), "is what -o names too"),
        (("--box", BOX, "--smooth"), "--smooth means nothing to InfinityPipeline"),
        (("--box", BOX, "-o", "in/photo.png"), "is read by this command"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(run, model_folder, picture, tmp_path, arguments, words):
    Image.new("L", (64, 64)).save("empty.png")
    Image.new("L", (64, 32), 255).save("wide.png")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    result = run("edit", picture, PROMPT, "--model", model_folder, *arguments)
    assert result.code == 2 and words in result.stderr and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_prompt_and_a_picture_are_needed(run, model_folder, picture):
    assert run("edit", picture).code == 2
    empty = run("edit", picture, " ", "--model", model_folder, "--box", BOX)
    assert empty.code == 2 and "The prompt is empty" in empty.stderr
    missing = run("edit", "none.png", PROMPT, "--model", model_folder, "--box", BOX)
    assert missing.code == 2 and "There is no picture 'none.png'" in missing.stderr


def test_edits_are_scored(run, model_folder):
    start = ("evaluate", "edits", "--model", model_folder, "-n", 3, "--share", 0.3)
    document = run(*start, "--json", "--sheet", "sheet.jpg").json
    assert pixels("sheet.jpg").shape == (3 * PIXELS + 16, 3 * PIXELS + 16, 3)
    assert document["n"] == 3 and document["pruning"] == "region" and 0 <= document["overall"] <= 1
    assert set(document["kinds"]) == {"replace", "colour", "texture"}
    assert 0.25 < document["box_share"] < 0.5 and document["psnr_outside"] > 0
    shown = run(*start, "--pruning", "none")
    assert (
        shown.code == 0 and "the visual tokenizer alone has" in shown.stdout and "plan none" in shown.stdout
    )
    refused = run("evaluate", "edits", "--model", model_folder, "--share", 1.5)
    assert refused.code == 2 and "between 0 and 1" in refused.stderr


def test_a_stopped_score_of_edits_goes_on(run, model_folder, tmp_path):
    start = (
        "evaluate",
        "edits",
        "--model",
        model_folder,
        "--beside",
        "none,prune",
        "-o",
        "edits.jsonl",
        "--json",
    )
    assert run(*start, "-n", 2).code == 0
    file = tmp_path / "edits.jsonl"
    written = file.read_text()
    file.write_text(written[:-20])
    whole = run(*start, "-n", 3).json
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["number"] for line in lines[1:]] == [0, 1, 2]
    assert lines[1] == json.loads(written.splitlines()[1]), "what was whole is not drawn again"
    assert whole["reference"] == "none" and list(whole["plans"]) == ["region", "none", "prune"]
    dense = whole["plans"]["none"]
    assert dense["difference"]["value"] == 0 and dense["faster"] == 1.0
    assert whole["plans"]["region"]["difference"]["n"] == 3
    assert run(*start, "-n", 3).json == whole, "all of it is read"
    shown = run(*start[:-1], "-n", 3)
    assert shown.code == 0 and "against none, edit by edit" in shown.stdout and "x faster" in shown.stdout
    for change, words in (
        (("--seed", 1), "its seed differ"),
        (("--beside", "none,none"), "names 'none' twice"),
        (("--beside", "bset"), "Unknown pruning preset 'bset'"),
        (("-o", "edits.json"), ".jsonl"),
    ):
        refused = run(*start, "-n", 3, *change)
        assert refused.code == 2 and words in refused.stderr, refused.stderr
