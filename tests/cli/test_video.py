"""Videos from the command line: real files that can be read again, and what cannot be asked."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from stepvar.media.video import Video, encode_gif, encode_mp4, read_video

PROMPT = "a red circle on grass"


@pytest.fixture(scope="session")
def video_model(tmp_path_factory):
    """A saved video pipeline with random weights; tests must not change it."""
    from tiny_star import make_star_pipeline

    folder = tmp_path_factory.mktemp("video") / "tiny"
    make_star_pipeline().save_pretrained(folder)
    return folder


def shades(count: int) -> Video:
    return Video([Image.new("RGB", (64, 48), (8 * place, 100, 40)) for place in range(count)], 16)


def test_an_mp4_comes_out(run, video_model, tmp_path):
    result = run(
        "generate", PROMPT, "--model", video_model, "--seconds", 1, "--seed", 3, "-o", "clip.mp4", "--json"
    )
    assert result.code == 0, result.stderr
    assert result.json["images"] == [{"file": "clip.mp4", "prompt": PROMPT, "seed": 3}]
    assert len(result.json["scales"]) == 13
    video = read_video(tmp_path / "clip.mp4")
    assert len(video.frames) == 17
    assert video.frames_per_second == 16
    assert video.frames[0].size == (80, 48)
    import av

    with av.open(str(tmp_path / "clip.mp4")) as container:
        settings = json.loads(container.metadata["comment"])
        assert container.streams.video[0].codec_context.name == "h264"
    assert (settings["prompt"], settings["seed"], settings["seconds"]) == (PROMPT, 3, 1)


def test_gifs_frames_and_pictures(run, video_model, tmp_path):
    base = ("generate", PROMPT, "--model", video_model, "--seed", 3)
    assert run(*base, "--seconds", 1, "-o", "clip.gif").code == 0
    with Image.open(tmp_path / "clip.gif") as gif:
        # The first frame shows what the second does, and a GIF keeps equal frames once.
        assert (gif.n_frames, gif.size) == (16, (80, 48))
    assert run(*base, "--seconds", 1, "--frames", "-o", "frames").code == 0
    assert len(list((tmp_path / "frames").glob("a-red-circle-on-grass-3/*.png"))) == 17
    picture = run(*base, "-o", "picture.png", "--json")
    assert picture.json["settings"]["seconds"] == 0
    assert Image.open(tmp_path / "picture.png").size == (80, 48)


def test_an_ending_in_capitals_means_the_same(run, video_model, tmp_path):
    picture = run("generate", PROMPT, "--model", video_model, "--seed", 3, "-o", "picture.PNG", "--json")
    assert picture.code == 0, picture.stderr
    assert picture.json["settings"]["seconds"] == 0
    assert picture.json["images"][0]["file"] == "picture.PNG"
    assert Image.open(tmp_path / "picture.PNG").format == "PNG"


def test_a_video_begins_with_a_picture_and_goes_on(run, video_model, tmp_path):
    Image.new("RGB", (80, 48), (200, 40, 40)).save(tmp_path / "first.png")
    base = ("generate", PROMPT, "--model", video_model, "--seed", 3, "--json")
    first = run(*base, "--image", "first.png", "--seconds", 1, "-o", "one.mp4")
    assert first.code == 0, first.stderr
    assert first.json["settings"]["begins_with"] == "picture"
    longer = run(*base, "--video", "one.mp4", "-o", "two.mp4")
    assert longer.code == 0, longer.stderr
    assert len(read_video(tmp_path / "two.mp4").frames) == 33


def test_the_summary_has_a_memory_plan(run, video_model):
    told = run("summary", "--model", video_model, "--seconds", 2, "--pruning", "paper", "--json").json
    assert len(told["scales"]) == 20
    assert told["memory"]["peak"]["all parts on the device"] > told["memory"]["cache"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", 9], "No scale schedule draws 9 seconds: take whole seconds from 1 to 2"),
        (["--size", "80x80"], "No scale schedule draws 80x80 pixels"),
        (["--image", "none.png"], "There is no picture 'none.png'"),
        (["--image", "text.txt"], "'text.txt' is not a picture that can be read"),
        (["--video", "none.mp4"], "There is no video file 'none.mp4'"),
        (["--video", "text.txt"], "'text.txt' is not a video that can be read"),
        (["--video", "sound.wav"], "'sound.wav' has sound but no pictures"),
        (["--video", "short.mp4"], "The video lasts 0.2 seconds, but 1 are needed"),
        (["--seconds", 1, "-o", "clip.avi"], "'clip.avi' is no .mp4 or .gif file"),
        (["--frames", "-o", "clip.mp4"], "'clip.mp4' is the name of a file: name a folder"),
    ],
)
def test_one_sentence_for_what_cannot_be(run, video_model, tmp_path, arguments, message):
    (tmp_path / "text.txt").write_text("no media at all\n" * 50)
    (tmp_path / "short.mp4").write_bytes(encode_mp4(shades(3)))
    _write_sound(tmp_path / "sound.wav")
    result = run("generate", PROMPT, "--model", video_model, *arguments)
    assert result.code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def _write_sound(path) -> None:
    import wave

    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0\1" * 800)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", 5], "--seconds means nothing to InfinityPipeline"),
        (["-o", "clip.mp4"], "-o clip.mp4 is for models that draw videos, and this one draws pictures"),
        (["-o", "clip.MP4"], "-o clip.MP4 is for models that draw videos, and this one draws pictures"),
        (["--frames", "-o", "clip"], "--frames is for models that draw videos"),
    ],
)
def test_models_of_pictures_draw_no_videos(run, model_folder, arguments, message):
    result = run("generate", PROMPT, "--model", model_folder, *arguments)
    assert result.code == 2
    assert message in result.stderr


@pytest.mark.parametrize("name", ["clip.mp4", "clip.MP4"])
def test_without_the_extra_an_mp4_is_refused_before_any_work(run, video_model, monkeypatch, name):
    import sys

    from stepvar import InfinityStarPipeline

    def nothing_may_run(self, *args, **kwargs):
        raise AssertionError("a video was drawn")

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(InfinityStarPipeline, "run_scales", nothing_may_run)
    result = run("generate", PROMPT, "--model", video_model, "--seconds", 1, "-o", name)
    assert result.code == 2
    assert "pip install 'stepvar[video]'" in result.stderr


def test_benchmarks_of_pictures_draw_pictures(run, video_model, tmp_path):
    line = {"tag": "single_object", "include": [{"class": "ring", "count": 1}], "prompt": PROMPT}
    (tmp_path / "geneval.jsonl").write_text(json.dumps(line) + "\n")
    result = run(
        "evaluate",
        "geneval",
        "geneval.jsonl",
        *("-o", "drawn", "--samples", 1, "--pruning", "none", "--model", video_model, "--json"),
    )
    assert result.code == 0, result.stderr
    assert result.json["settings"]["seconds"] == 0
    (picture,) = (tmp_path / "drawn" / "images").rglob("*.png")
    assert Image.open(picture).size == (80, 48)


def test_truncated_and_empty_files_are_told(tmp_path):
    whole = encode_mp4(shades(8))
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("cut.mp4", "empty.mp4"):
        with pytest.raises(ValueError, match="fetch it again"):
            read_video(tmp_path / name)


def test_only_the_seconds_that_are_needed_are_read(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(shades(32)))
    first = read_video(tmp_path / "clip.mp4", 0.5)
    last = read_video(tmp_path / "clip.mp4", 0.5, from_end=True)
    for video, places in ((first, range(8)), (last, range(24, 32))):
        assert len(video.frames) == 8
        for frame, place in zip(video.frames, places, strict=True):
            assert abs(frame.getpixel((30, 20))[0] - 8 * place) < 12
    assert len(read_video(tmp_path / "clip.mp4", 5).frames) == 32


@pytest.mark.parametrize(
    ("matrix", "size", "red"),
    [
        ((0, 1, -1, 0), (48, 64), (44, 32)),
        ((-1, 0, 0, -1), (64, 48), (32, 44)),
        ((0, -1, 1, 0), (48, 64), (4, 32)),
    ],
)
def test_videos_that_a_phone_stores_sideways_are_read_upright(tmp_path, matrix, size, red):
    picture = Image.new("RGB", (64, 48), (0, 0, 200))
    picture.paste((250, 0, 0), (0, 0, 64, 16))
    content = bytearray(encode_mp4(Video([picture] * 4, 16)))
    # The track header tells where the right and the lower edge of the stored frames are shown.
    start = content.index(b"tkhd") + 44
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[start + place : start + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    (tmp_path / "phone.mp4").write_bytes(content)
    frame = read_video(tmp_path / "phone.mp4").frames[0]
    assert frame.size == size
    assert frame.getpixel(red)[0] > 200
    assert frame.getpixel((size[0] - 1 - red[0], size[1] - 1 - red[1]))[0] < 50


def test_files_keep_frames_colours_and_pace(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(shades(8), "a note"))
    (tmp_path / "clip.gif").write_bytes(encode_gif(shades(8), "a note"))
    video = read_video(tmp_path / "clip.mp4")
    assert [frame.size for frame in video.frames] == [(64, 48)] * 8
    for place, frame in enumerate(video.frames):
        red, green, blue = frame.getpixel((30, 20))
        assert abs(red - 8 * place) < 12
        assert abs(green - 100) < 12
        assert abs(blue - 40) < 12
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.info["comment"] == b"a note"
        assert gif.info["duration"] == 60


@pytest.fixture(scope="session")
def scenes_model(tmp_path_factory):
    """An untrained video model of the scenes, smaller than the one that ships."""
    import torch

    from stepvar.training.common.packaging import package
    from stepvar.training.video.model import VideoModel
    from stepvar.training.video.sizes import VideoModelSize
    from stepvar.training.video.train import assemble
    from stepvar.training.video.vae import build_vae

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = VideoModelSize(depth=2, width=32, heads=2, hidden_width=48)
        pipeline = assemble(build_vae(), VideoModel(size))
    folder = tmp_path_factory.mktemp("scenes") / "model"
    package(pipeline, folder)
    return folder


def test_dense_and_pruned_videos_are_compared(run, scenes_model, tmp_path):
    prompt = "a red star moves left"
    result = run(
        "compare", prompt, "--model", scenes_model, "--seed", 1, "--repeats", 1, "-o", "c.png", "--json"
    )
    assert result.code == 0, result.stderr
    assert (
        result.json["prompt"] == prompt and result.json["pruned"]["tokens"] < result.json["dense"]["tokens"]
    )
    assert -1.0 <= result.json["ssim"] <= 1.0
    with Image.open(tmp_path / "c.png") as figure:
        # Five frames of 112 pixels side by side, twice their size.
        assert figure.width == 2 * 5 * 112 + 2 * 36
    told = run("compare", prompt, "--model", scenes_model, "--seed", 1, "--repeats", 1, "-o", "d.png")
    assert "2x14x14 clip 1" in told.stdout


def test_videos_are_scored_by_category(run, scenes_model):
    from stepvar.scenes.moving.grammar import CATEGORIES

    base = ("evaluate", "scenes", "--model", scenes_model, "-n", 4, "--json")
    for more in ((), ("--pruning", "paper"), ("--reconstructions",)):
        result = run(*base, *more)
        assert result.code == 0, result.stderr
        assert list(result.json["categories"]) == list(CATEGORIES)
        assert "motion" in result.json["aspects"] and result.json["n"] == 4
    assert "motion" in run("evaluate", "scenes", "--model", scenes_model, "-n", 4).stdout


def test_unknown_words_are_refused_with_known_ones(run, scenes_model):
    result = run("generate", "a red dog grows", "--model", scenes_model, "-o", "dog.mp4")
    assert result.code == 2 and "dog" in result.stderr and "Traceback" not in result.stderr


def test_an_installation_without_the_video_model_says_so(run, monkeypatch, tmp_path):
    import stepvar
    from stepvar import embedded

    monkeypatch.setitem(embedded.MODELS, "video", tmp_path / "nowhere")
    result = run("generate", PROMPT, "--model", "embedded-video")
    assert result.code == 2 and "weights are missing" in result.stderr
    with pytest.raises(FileNotFoundError, match="lacks the weights"):
        stepvar.load_embedded("video")
    with pytest.raises(ValueError, match="pictures, pictures-384, video"):
        stepvar.load_embedded("music")
