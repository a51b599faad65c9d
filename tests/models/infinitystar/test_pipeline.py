"""The pipeline: what users pass, what they get, and what they are told when it cannot be."""

from __future__ import annotations

import logging
from fractions import Fraction

import pytest
import torch
from PIL import ExifTags, Image

from stepvar.models.infinitystar.conditioning import read_image, read_video_frames
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.planning import VideoDefaults, plan_video
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.models.pipeline import NextScalePipeline
from stepvar.pruning.stepvar import StepVAR
from tiny_star import STEPS_OF_CLIP, make_star_pipeline, random_video

PROMPT = "two yellow stars above a striped blue ring on sand"


@pytest.fixture(scope="module")
def pipeline():
    return make_star_pipeline()


def pictures(frames: int, width: int = 80, height: int = 48, seed: int = 0) -> list[Image.Image]:
    video = ((random_video(frames, height, width, seed)[0] + 1) * 127.5).to(torch.uint8)
    return [Image.fromarray(frame.numpy()) for frame in video.permute(1, 2, 3, 0)]


def same(first, second) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def latent(pipeline, *args, **kwargs) -> torch.Tensor:
    return pipeline(*args, output_type="latent", **kwargs).frames


def test_a_second_of_video(pipeline):
    seen = []
    result = pipeline(PROMPT, seconds=1, seed=3, observer=seen.append)
    assert len(result.frames) == 1
    assert [frame.size for frame in result.frames[0]] == [(80, 48)] * 17
    assert result.frames_per_second == 16
    assert [str(report.plan.scale) for report in seen][-3:] == [
        "4x2x3 clip 1",
        "4x2x3 clip 1 #2",
        "4x3x5 clip 1",
    ]
    assert result.report.settings["seconds"] == 1
    assert result.report.seeds == [3]
    assert result.report.stages.keys() == {"text", "scales", "decode"}


def test_a_picture(pipeline):
    result = pipeline(PROMPT, seconds=0, seed=3)
    assert [frame.size for frame in result.frames[0]] == [(80, 48)]
    assert result.images[0].tobytes() == result.frames[0][0].tobytes()


def test_seeds_reproduce_and_a_batch_equals_single_runs(pipeline):
    both = latent(pipeline, [PROMPT, "a red circle on grass"], seconds=1, seed=[5, 6])
    assert torch.equal(both[1:], latent(pipeline, "a red circle on grass", seconds=1, seed=6))
    assert torch.equal(both[:1], latent(pipeline, PROMPT, seconds=1, seed=5))
    assert not torch.equal(both[:1], latent(pipeline, PROMPT, seconds=1, seed=7))


def test_a_video_begins_with_a_picture(pipeline):
    [picture] = pictures(1)
    kwargs = {"seconds": 1, "image": picture}
    first = latent(pipeline, PROMPT, seed=1, **kwargs)
    assert torch.equal(first, latent(pipeline, PROMPT, seed=1, **kwargs))
    another = latent(pipeline, PROMPT, seed=2, **kwargs)
    assert not torch.equal(first[:, :, 1:], another[:, :, 1:])
    means = [latent(pipeline, PROMPT, seed=seed, posterior="mean", **kwargs)[:, :, :1] for seed in (1, 2)]
    assert torch.equal(*means)
    report = pipeline(PROMPT, seed=1, output_type="latent", **kwargs).report
    assert len(report.scales) == 1 + STEPS_OF_CLIP
    assert report.settings["begins_with"] == "picture"


def test_a_video_goes_on(pipeline):
    result = pipeline(PROMPT, video=pictures(17), seed=1, output_type="latent")
    assert result.frames.shape == (1, 64, 9, 3, 5)
    assert result.report.settings["seconds"] == 2
    assert len(result.report.scales) == 2 + STEPS_OF_CLIP


def test_a_picture_of_another_shape_is_cut_with_a_note(pipeline, caplog, tmp_path):
    pictures(1, 64, 64)[0].save(tmp_path / "square.png")
    with caplog.at_level(logging.WARNING, logger="stepvar"):
        latent(pipeline, PROMPT, seconds=1, seed=1, image=tmp_path / "square.png")
    assert "The picture is 64x64 pixels; its middle was cut out for 80x48." in caplog.text


def test_interactive_continuation_goes_on_and_on():
    pipeline = make_star_pipeline(resolution="interact")
    first = pipeline(PROMPT, video=pictures(17), seed=1)
    assert len(first.frames[0]) == 16
    [after] = first.continuations
    assert after.former.shape == (1, 64, 5, 3, 5)
    second = pipeline("a red circle on grass", continuation=after, seed=2)
    assert len(second.frames[0]) == 16
    assert torch.equal(second.continuations[0].first, after.first)
    assert not torch.equal(second.continuations[0].former, after.former)
    with pytest.raises(ValueError, match="These weights continue videos: give a video"):
        pipeline(PROMPT)
    with pytest.raises(ValueError, match="give a video, not an image"):
        pipeline(PROMPT, image=pictures(1)[0])
    with pytest.raises(ValueError, match="draws 1 seconds at a time, not 2"):
        pipeline(PROMPT, video=pictures(17), seconds=2)


def test_a_continuation_keeps_its_size_and_length():
    sizes = VideoSizes.published("interact")
    defaults = VideoDefaults.of("interact", {})

    def plan(latents: int, **kwargs):
        former = torch.zeros(1, 1, latents, 53, 30)
        return plan_video(sizes, defaults, continuation=Continuation(former, former[:, :, :1]), **kwargs)

    assert plan(21).schedule.position_grid == (53, 30)
    assert plan(21, size=(848, 480, None, None)).schedule.position_grid == (53, 30)
    with pytest.raises(ValueError, match=r"is 480x848 pixels .* go on at 640x640: leave the size out"):
        plan(21, size=(None, None, 1.0, None))
    with pytest.raises(ValueError, match="has 17 latent frames, but these weights go on from 21"):
        plan(17)
    with pytest.raises(ValueError, match="Only weights for interactive continuation"):
        plan_video(VideoSizes.published("480p"), defaults, continuation=Continuation(torch.zeros(1), None))


def test_of_a_file_only_the_part_that_is_gone_on_from_is_read(pipeline, tmp_path):
    from stepvar.media.video import Video, encode_mp4

    shades = [Image.new("RGB", (80, 48), (6 * place, 100, 40)) for place in range(40)]
    (tmp_path / "long.mp4").write_bytes(encode_mp4(Video(shades, 16)))
    assert len(read_video_frames(tmp_path / "long.mp4", 16, 1.0, from_end=True).pictures) == 16
    interactive = make_star_pipeline(resolution="interact")
    for model, first, last in ((pipeline, 0, 15), (interactive, 24, 39)):
        plan = plan_video(model.transformer.sizes, model.defaults, video=tmp_path / "long.mp4")
        reds = [plan.conditioning.pictures[place].getpixel((40, 24))[0] for place in (0, -1)]
        assert reds == pytest.approx([6 * first, 6 * last], abs=12)


def test_pictures_that_a_phone_stores_sideways_are_read_upright(tmp_path):
    stored = Image.new("RGB", (80, 48), (0, 0, 200))
    stored.paste((250, 0, 0), (0, 0, 80, 16))
    note = Image.Exif()
    note[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "phone.jpg", exif=note)
    with Image.open(tmp_path / "phone.jpg") as opened:
        beginnings = [
            read_image(tmp_path / "phone.jpg"),
            read_image(opened),
            read_video_frames([opened], 16, 1.0, from_end=False),
        ]
    for beginning in beginnings:
        [picture] = beginning.pictures
        assert picture.size == (48, 80)
        assert picture.getpixel((44, 40))[0] > 200
        assert picture.getpixel((4, 40))[0] < 50
    stored.save(tmp_path / "damaged-note.png", exif=b"no note at all")
    assert read_image(tmp_path / "damaged-note.png").pictures[0].size == (80, 48)


def test_chunks_and_tiles_of_the_decoder(pipeline):
    whole = pipeline(PROMPT, seconds=1, seed=4).frames[0]
    assert same(whole, pipeline(PROMPT, seconds=1, seed=4, decode_chunk=1).frames[0])
    tiled = pipeline(PROMPT, seconds=1, seed=4, decode_tile=4, output_type="pt").frames
    assert tiled.shape == (1, 17, 3, 48, 80)
    assert float(tiled.min()) >= 0
    assert float(tiled.max()) <= 1


def test_pruning_and_its_summary(pipeline):
    method = StepVAR(ratios={-1: 0.5, -2: 0.5})
    result = pipeline(PROMPT, seconds=1, seed=4, pruning=method, output_type="latent")
    told = pipeline.summary(method, seconds=1)
    assert [report.plan.kept for report in result.report.scales] == [entry.kept for entry in told.plan.scales]
    assert told.flops < told.dense_flops
    for preset in ("paper", "prune", "skip"):
        assert pipeline.summary(preset, seconds=1).flops < told.dense_flops
    with pytest.raises(ValueError, match="Every step of clip 1 is skipped"):
        pipeline.summary(StepVAR(skip=tuple(range(-STEPS_OF_CLIP, 0))), seconds=1)


def test_the_summary_tells_the_cache_that_is_allocated(pipeline):
    told = pipeline.summary(seconds=2, text_tokens=13)
    embeds = [torch.randn(13, 32, generator=torch.Generator().manual_seed(0))]
    result = pipeline(prompt_embeds=embeds, seconds=2, seed=1, output_type="latent")
    assert told.memory.cache == result.report.cache_bytes
    pruned = pipeline.summary("prune", seconds=2, text_tokens=13)
    assert told.cache_bytes == told.memory.cache
    several = pipeline.summary(seconds=2, text_tokens=13, images=3)
    assert several.cache_bytes == several.memory.cache == told.cache_bytes
    assert several.flops == 3 * told.flops
    assert 0 < pruned.cache_bytes == pruned.memory.cache <= told.cache_bytes
    assert all(cost.cache_bytes >= 0 for cost in told.costs)
    memory = told.as_json()["memory"]
    assert memory["peak"]["one part at a time"] <= memory["peak"]["all parts on the device"]
    assert "one layer at a time" in str(told)


def test_saved_pipelines_draw_the_same(pipeline, tmp_path):
    from stepvar import InfinityStarPipeline

    pipeline.save_pretrained(tmp_path / "model")
    loaded = InfinityStarPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(latent(loaded, PROMPT, seconds=1, seed=2), latent(pipeline, PROMPT, seconds=1, seed=2))


def test_parts_are_brought_in_by_their_offloading_hooks(pipeline):
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    expected = latent(pipeline, PROMPT, seconds=0, seed=2)
    hooked = make_star_pipeline()
    brought = []
    for name in ("transformer", "vae"):
        _, hook = cpu_offload_with_hook(getattr(hooked, name), "cpu")
        bring = hook.hook.pre_forward

        def watched(module, *args, bring=bring, name=name):
            brought.append(name)
            return bring(module, *args)

        hook.hook.pre_forward = watched
    result = hooked(PROMPT, seconds=0, seed=2)
    assert brought[-1] == "vae"
    assert "transformer" in brought
    assert torch.equal(latent(hooked, PROMPT, seconds=0, seed=2), expected)
    assert result.frames[0][0].size == (80, 48)
    for name in ("transformer", "vae"):
        remove_hook_from_module(getattr(hooked, name))


def test_weights_that_come_layer_by_layer_give_the_same(pipeline):
    from accelerate import cpu_offload

    expected = latent(pipeline, PROMPT, seconds=1, seed=2, pruning="paper")
    streamed = make_star_pipeline()
    cpu_offload(streamed.transformer, torch.device("cpu"))
    assert all(value.is_meta for value in streamed.transformer.blocks.parameters())
    assert torch.equal(latent(streamed, PROMPT, seconds=1, seed=2, pruning="paper"), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 3}, "take whole seconds from 1 to 2, or 0 for a picture"),
        ({"seconds": 1.5}, "No scale schedule draws 1.5 seconds"),
        ({"height": 48, "width": 96}, "No scale schedule draws 96x48 pixels"),
        ({"height": 48}, "Give both height and width"),
        ({"aspect_ratio": -1}, "must be positive"),
        ({"pixel_budget": "1M"}, "This model draws one resolution, tiny"),
        ({"guidance_scale": [3.0, 2.0]}, "guidance_scale has 2 entries"),
        ({"guidance_threshold": -1}, "guidance_threshold is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"top_p": 2.0}, "top_p is 2"),
        ({"posterior": "mode"}, "known are sample, mean"),
        ({"output_type": "gif"}, "Unknown output_type"),
        ({"decode_chunk": 0}, "decode_chunk must be 1"),
        ({"seed": [1, 2]}, "1 images need 1 seeds"),
        ({"image": "nowhere.png"}, "There is no picture 'nowhere.png'"),
        ({"image": 7}, "image is a int"),
        ({"video": "nowhere.mp4"}, "There is no video file 'nowhere.mp4'"),
        ({"video": []}, "video is no list of PIL pictures"),
        ({"negative_prompt": ["a", "b"]}, "One prompt needs one negative prompt; got 2"),
    ],
)
def test_wrong_inputs_are_told_before_anything_runs(pipeline, arguments, message):
    def nothing_may_run(report):
        raise AssertionError("a step ran")

    with pytest.raises(ValueError) as error:
        pipeline(PROMPT, observer=nothing_may_run, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_beginnings_that_leave_nothing_to_draw(pipeline):
    [picture] = pictures(1)
    with pytest.raises(ValueError, match="leaves nothing to draw"):
        pipeline(PROMPT, image=picture, seconds=0)
    with pytest.raises(ValueError, match="leaves nothing to draw"):
        pipeline(PROMPT, video=pictures(17), seconds=1)
    with pytest.raises(ValueError, match=r"The video lasts 0.5 seconds, but 1 are needed"):
        pipeline(PROMPT, video=pictures(8))
    with pytest.raises(ValueError, match="Give one thing to begin with"):
        pipeline(PROMPT, video=pictures(17), image=picture)


def test_the_words_that_are_added_to_a_prompt_count(pipeline, monkeypatch):
    from stepvar import InfinityStarPipeline

    parts = {name: getattr(pipeline, name) for name in ("transformer", "vae", "text_encoder", "tokenizer")}
    adding = InfinityStarPipeline(**parts, prompt_suffix=" on grass", marks_duration=False)
    fitting = " ".join(["sand"] * 31)
    pipeline.check_prompts([fitting])
    adding.check_prompts(["sand"], negatives=[fitting])
    with pytest.raises(ValueError, match="has 34 tokens, but the model reads at most 32: shorten it by 2"):
        adding.check_prompts([fitting])
    seen = []
    monkeypatch.setattr(NextScalePipeline, "check_prompts", lambda self, texts: seen.extend(texts))
    marking = InfinityStarPipeline(**parts, prompt_suffix=", large", marks_duration=True)
    for seconds in (0, 1, None):
        marking.check_prompts(["fox"], ["blur"], seconds)
    assert seen == ["fox, large", "blur", "<<<t=1s>>>fox, large", "blur", "<<<t=2s>>>fox, large", "blur"]


def test_a_damaged_picture_is_told(pipeline, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match="is not a picture that can be read"):
        pipeline(PROMPT, image=tmp_path / "broken.png")


@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0, 6.0], [0.0, 5000.0], [index / 10 for index in range(60)]])
@pytest.mark.parametrize("from_end", [False, True])
def test_seconds_of_an_uneven_video_are_those_of_its_clock(tmp_path, times, from_end):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "uneven.mkv"), mode="w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_image(Image.new("RGB", (80, 48), (4 * index, 0, 0)))
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = read_video_frames(tmp_path / "uneven.mkv", 16, 5.0, from_end).spread(5.0, 81, from_end).pictures
    assert len(shown) == 81
    end = times[-1] + 1 / 30
    for place in (0, 20, 40, 60):
        moment = place / 16 + (end - 5.0 if from_end else 0.0)
        expected = max(index for index, time in enumerate(times) if time <= moment + 0.11)
        earliest = max(index for index, time in enumerate(times) if time <= max(moment - 0.11, 0.0))
        assert earliest - 1 <= shown[place].getpixel((40, 24))[0] / 4 <= expected + 1
