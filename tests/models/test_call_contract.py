"""The contract of a call, which is the same for every pipeline."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from stepvar.models import MODELS
from stepvar.models.pipeline import NextScalePipeline
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_pipelines import needed
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline
from tiny_varedit import make_varedit_pipeline

MAKERS: dict[str, tuple[Callable[..., NextScalePipeline], Any]] = {
    "infinity": (make_infinity_pipeline, "a red star"),
    "var": (make_var_pipeline, 1),
    "hart": (make_hart_pipeline, "a red star"),
    "switti": (make_switti_pipeline, "a red star"),
    "infinitystar": (make_star_pipeline, "a red star on sand"),
    "varedit": (make_varedit_pipeline, "a red star"),
}
GROWING = ("var", "hart", "switti")
"""Models whose official code counts guidance from 0."""

each_model = pytest.mark.parametrize("name", MAKERS)


@cache
def made(name: str) -> NextScalePipeline:
    """A tiny pipeline, made once; tests must leave it as it was."""
    return MAKERS[name][0]()


def call(pipeline: NextScalePipeline, name: str, **options: Any) -> Any:
    """The output of one picture, or of a video of one frame."""
    own = needed(pipeline, still="num_frames" not in options)
    return pipeline(MAKERS[name][1], **{"seed": 3, **own, **options})


def pixels(output: Any) -> np.ndarray:
    """Bytes of the first picture."""
    return np.asarray(output.images[0])


def latents(output: Any) -> torch.Tensor:
    """The accumulated codes of an output of type "latent"."""
    return output.frames if hasattr(output, "frames") else output.images


def test_every_model_is_here():
    assert MAKERS.keys() == {spec.key for spec in MODELS}


@each_model
def test_a_guidance_of_one_is_off(name):
    report = call(made(name), name, guidance_scale=1).report
    assert {scale.rows for scale in report.scales} == {1}
    assert set(report.settings["guidance_scale"]) == {1.0}
    guided = call(made(name), name, guidance_scale=2).report
    assert max(scale.rows for scale in guided.scales) == 2


@pytest.mark.parametrize("name", GROWING)
def test_a_folder_of_an_earlier_version_keeps_its_guidance(name, tmp_path):
    pipeline = made(name)
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text("utf-8"))
    assert index.pop("_guidance_off") == 1.0
    index["guidance_scale"] -= 1.0
    file.write_text(json.dumps(index), "utf-8")
    loaded = type(pipeline).from_pretrained(tmp_path)
    assert loaded.config["guidance_scale"] == pipeline.config["guidance_scale"]
    assert np.array_equal(pixels(call(loaded, name)), pixels(call(pipeline, name)))
    given = type(pipeline).from_pretrained(tmp_path, guidance_scale=2.5)
    assert given.config["guidance_scale"] == 2.5


@each_model
def test_another_pipeline_of_the_same_components_draws_the_same(name):
    source = made(name)
    changed = type(source)(**MAKERS[name][0]().components, guidance_scale=1.5)
    again = type(source)(**changed.components)
    assert np.array_equal(pixels(call(changed, name)), pixels(call(source, name, guidance_scale=1.5)))
    assert again.config["guidance_scale"] == source.config["guidance_scale"]
    assert np.array_equal(pixels(call(again, name)), pixels(call(source, name)))


@each_model
def test_a_subclass_keeps_its_presets(name):
    own = type("Own", (type(made(name)),), {})(**MAKERS[name][0]().components)
    assert own.presets == made(name).presets
    assert own.summary("prune").flops < own.summary().flops


@each_model
def test_the_summary_takes_the_arguments_of_the_call(name):
    pipeline, subject = made(name), MAKERS[name][1]
    sampling = {"top_k": 1, "top_p": 0.5, "seed": [1, 2, 3], "output_type": "np", "observer": print}
    if pipeline.reads_text:
        sampling["negative_prompt"] = ["blue", "big", "green"]
    told = pipeline.summary("prune", guidance_scale=2, **sampling)
    assert told.costs == pipeline.summary(pruning="prune", guidance_scale=2).costs
    several = pipeline.summary("prune", **{pipeline._subject: [subject] * 3}, num_images_per_prompt=2)
    assert several.costs == pipeline.summary("prune", images=6).costs
    with pytest.raises(ValueError, match="takes no guidance_scal: did you mean guidance_scale"):
        pipeline.summary(guidance_scal=2)


def test_a_report_prints_as_a_table_of_its_scales():
    report = call(made("infinity"), "infinity", pruning="skip").report
    head, *rows, total, stages = str(report).splitlines()
    assert head.split() == ["scale", "tokens", "kept", "rows", "ms"]
    assert len(rows) == len(report.scales)
    assert rows[0].split()[:4] == ["1x1", "1", "1", "2"] and "skipped" in rows[-1]
    assert total.split()[1:3] == [str(report.total_tokens), str(report.kept_tokens)]
    assert stages.startswith("Stages: text")
    assert "tensor" not in repr(report)


@each_model
def test_call_and_check_have_one_signature(name):
    kind = type(made(name))
    left, right = (inspect.signature(method).parameters for method in (kind.__call__, kind.check))
    assert list(left.values()) == list(right.values())
    assert list(left)[1:4] == [kind._subject, "height", "width"]
    assert "guidance_scale: " in (kind.__call__.__doc__ or "")


@each_model
def test_every_pipeline_knows_the_pixels_of_a_schedule(name):
    pipeline = made(name)
    height, width = pipeline.pixels(pipeline.schedule())
    assert pixels(call(pipeline, name)).shape == (height, width, 3)


TEXT_MODELS = [name for name in MAKERS if name != "var"]


def encoded(name: str, prompts: list[str]) -> dict[str, Any]:
    """Encoded prompts as one padded tensor and its mask, as arguments of a call."""
    pipeline = made(name)
    features = pipeline.encode(prompts)
    if name == "hart":
        return {"prompt_embeds": features.features, "prompt_attention_mask": features.mask}
    rows = features.tokens if name == "switti" else features
    arguments = {
        "prompt_embeds": torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=7.0),
        "prompt_attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True
        ),
    }
    return arguments | ({"pooled_prompt_embeds": features.pooled} if name == "switti" else {})


@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.no_grad()
def test_encoded_prompts_are_one_tensor_and_a_mask(name):
    prompts = ["a red star on sand", "a blue ring"]
    pipeline, length = made(name), needed(made(name))
    expected = pipeline(prompts, seed=3, output_type="latent", **length)
    arguments = encoded(name, prompts)
    found = pipeline(seed=3, output_type="latent", **arguments, **length)
    assert torch.equal(latents(found), latents(expected))
    assert pipeline.summary(**arguments).costs == pipeline.summary(images=2).costs


@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.no_grad()
def test_encoded_prompts_of_a_wrong_shape_are_refused_before_any_work(name):
    pipeline = made(name)
    arguments = encoded(name, ["a red star on sand", "a blue ring"])
    embeds, mask = arguments["prompt_embeds"], arguments["prompt_attention_mask"]

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=words):
            pipeline(
                **{**needed(pipeline), **arguments, **changes},
                observer=lambda report: pytest.fail("a scale ran"),
            )

    refused("channels", prompt_embeds=embeds[..., :-1])
    refused("prompt_attention_mask is", prompt_attention_mask=mask[:, :-1])
    refused(r"give one tensor \[B, T, E\]", prompt_embeds=embeds[None])
    refused("prompt and prompt_embeds were both given", prompt="a red star")
    refused("prompt_attention_mask", prompt_embeds=None)


REFUSED = {
    "num_inference_steps": 20,
    "latents": torch.zeros(1, 4, 8, 8),
    "timesteps": [1],
    "cross_attention_kwargs": {},
    "no_such_argument": 1,
}


@pytest.mark.parametrize(("argument", "value"), REFUSED.items())
@each_model
def test_arguments_without_a_meaning_are_refused_in_one_sentence(name, argument, value):
    with pytest.raises(ValueError, match=f"Pipeline takes no {argument}: ") as error:
        call(made(name), name, **{argument: value})
    assert isinstance(error.value, TypeError)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


WRONG = {
    "guidance_scale": [float("nan"), float("inf"), "three"],
    "seed": [[3.9], 3.9, torch.tensor(3), "3", [True, 2.0]],
    "top_p": [float("nan"), "much"],
    "num_images_per_prompt": [0, 1.5, float("nan")],
    "output_type": ["jpeg"],
    "height": [7],
}


@pytest.mark.parametrize(
    ("argument", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
@each_model
def test_wrong_numbers_are_refused_before_any_work(name, argument, value):
    with pytest.raises(ValueError) as error:
        call(made(name), name, **{argument: value}, observer=lambda report: pytest.fail("a scale ran"))
    assert argument in str(error.value) or argument == "height"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["infinity", "infinitystar", "varedit"])
@pytest.mark.parametrize("ratio", [float("inf"), float("nan"), 0.0, -1.0])
def test_an_aspect_ratio_is_positive_and_finite(name, ratio):
    with pytest.raises(ValueError, match="aspect_ratio is"):
        call(made(name), name, aspect_ratio=ratio)


@pytest.mark.parametrize("name", ["infinity", "infinitystar", "hart", "varedit"])
@pytest.mark.parametrize("value", [1e-42, 0.0, float("nan"), float("inf"), -1.0])
def test_a_temperature_under_which_logits_overflow_is_refused(name, value):
    with pytest.raises(ValueError, match="temperature is"):
        call(made(name), name, temperature=value)


@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize("prompt", [b"a red star", 5, [b"a red star"], ["a red star", 5]])
def test_a_prompt_is_a_text(name, prompt):
    with pytest.raises(ValueError, match=r"is of type (bytes|int): give a text"):
        made(name)(prompt)


@each_model
def test_an_output_is_shown_in_one_short_line(name):
    output = call(made(name), name)
    assert len(repr(output)) < 200
    assert "seeds [3]" in repr(output)
    assert "\n" not in repr(output)
    assert len(repr(call(made(name), name, output_type="latent"))) < 200


@each_model
def test_an_output_can_be_a_tuple(name):
    output, fields = call(made(name), name), call(made(name), name, return_dict=False)
    assert isinstance(fields, tuple)
    first = fields[0][0] if made(name).draws_videos else fields[0]
    assert np.array_equal(np.asarray(first[0]), pixels(output))


@each_model
def test_one_generator_serves_several_pictures_in_turn(name):
    pipeline, subject = made(name), MAKERS[name][1]
    length = needed(pipeline)

    def draw() -> Any:
        generator = torch.Generator().manual_seed(11)
        return pipeline([subject, subject], generator=generator, output_type="np", **length)

    first, second = draw(), draw()
    assert first.report.seeds == [None, None]
    assert np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images[0], first.images[1])


@each_model
def test_size_may_be_positional(name):
    pipeline = made(name)
    height, width = pipeline.pixels(pipeline.schedule())
    length = needed(pipeline)
    output = pipeline(MAKERS[name][1], height, width, seed=3, **length)
    assert np.array_equal(pixels(output), pixels(call(pipeline, name)))


def test_a_video_may_be_measured_in_frames():
    pipeline = made("infinitystar")
    frames = pipeline.transformer.sizes.frames_per_second + 1
    by_frames = call(pipeline, "infinitystar", num_frames=frames)
    by_seconds = call(pipeline, "infinitystar", seconds=1)
    assert len(by_frames.frames[0]) == frames
    assert by_frames.report.settings == by_seconds.report.settings
    assert len(call(pipeline, "infinitystar", num_frames=1).frames[0]) == 1
    with pytest.raises(ValueError, match="num_frames and seconds were both given"):
        call(pipeline, "infinitystar", num_frames=1, seconds=1)
    with pytest.raises(ValueError, match="num_frames is 0"):
        call(pipeline, "infinitystar", num_frames=0)


@each_model
def test_pictures_do_not_depend_on_an_outer_autocast(name):
    expected = call(made(name), name, output_type="np").images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(made(name), name, output_type="np").images
    assert np.array_equal(found, expected)


@each_model
def test_progress_is_shown_until_it_is_turned_off(name, capsys):
    pipeline = MAKERS[name][0]()
    call(pipeline, name)
    assert not capsys.readouterr().err
    pipeline.set_progress_bar_config()
    report = call(pipeline, name).report
    assert f"{len(report.scales)}/{len(report.scales)}" in capsys.readouterr().err


@each_model
def test_a_callback_is_called_after_every_scale_that_ran(name):
    pipeline, seen = made(name), []

    def callback(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict:
        assert pipe is pipeline and step == timestep and set(tensors) == {"latents"}
        seen.append((step, tensors["latents"].clone()))
        return {}

    output = call(pipeline, name, pruning="skip", callback_on_step_end=callback, output_type="latent")
    ran = [report.plan.scale.index for report in output.report.scales if not report.plan.skipped]
    assert [step for step, _ in seen] == ran
    assert torch.equal(seen[-1][1], latents(output))
    assert torch.equal(latents(output), latents(call(pipeline, name, pruning="skip", output_type="latent")))


@each_model
def test_a_callback_may_interrupt_and_change_the_latents(name):
    pipeline = made(name)

    def stop(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict:
        pipe._interrupt = step == 1
        assert pipe.interrupt == (step == 1)
        return {}

    report = call(pipeline, name, callback_on_step_end=stop).report
    assert [scale.plan.skipped for scale in report.scales] == [False] * 2 + [True] * (len(report.scales) - 2)
    assert not any(scale.plan.skipped for scale in call(pipeline, name).report.scales), "a call starts anew"

    def blank(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict:
        return {"latents": torch.zeros_like(tensors["latents"])}

    output = call(pipeline, name, callback_on_step_end=blank, output_type="latent")
    assert not latents(output).any()
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs has 'noise'; known are latents"):
        call(pipeline, name, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["noise"])


@each_model
def test_logits_that_are_not_finite_are_an_error(name):
    pipeline = MAKERS[name][0]()
    heads = [value for key, value in pipeline.transformer.named_parameters() if key.endswith("head.weight")]
    heads[0].data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="logits that are no finite numbers at scale 1x1"):
        call(pipeline, name)


@each_model
def test_pixels_that_are_not_finite_are_an_error(name):
    pipeline = MAKERS[name][0]()
    bias = next(value for key, value in pipeline.vae.decoder.named_parameters() if key.endswith("bias"))
    bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="pixels that are no finite numbers"):
        call(pipeline, name)


@each_model
def test_the_visual_tokenizer_may_decode_part_by_part(name):
    pipeline, subject = MAKERS[name][0](), MAKERS[name][1]
    length = needed(pipeline)

    def draw() -> np.ndarray:
        return np.asarray(pipeline([subject] * 2, seed=3, output_type="np", **length).images)

    expected = draw()
    pipeline.enable_vae_slicing()
    assert np.abs(draw() - expected).max() <= 1 / 255
    pipeline.enable_vae_tiling()
    assert np.abs(draw() - expected).max() <= 1 / 255
    pipeline.disable_vae_slicing()
    pipeline.disable_vae_tiling()
    assert np.array_equal(draw(), expected)


@pytest.mark.parametrize(
    "setting", ["enable_attention_slicing", "enable_xformers_memory_efficient_attention", "enable_freeu"]
)
@each_model
def test_settings_that_would_do_nothing_are_refused_in_words(name, setting):
    with pytest.raises(ValueError, match=r"\w") as error:
        getattr(made(name), setting)()
    assert str(error.value).endswith(".")


@each_model
def test_a_pipeline_from_another_one_shares_its_parts_or_copies_them(name):
    source = MAKERS[name][0]().to(torch.bfloat16)
    before = {key: value.dtype for key, value in source.transformer.named_parameters()}
    expected = pixels(call(source, name))
    shared = type(source).from_pipe(source)
    assert shared.transformer is source.transformer
    assert {**shared.config} == {**source.config}
    assert np.array_equal(pixels(call(shared, name)), expected)
    other = type(source).from_pipe(source, dtype=torch.float32, guidance_scale=1.5)
    assert other.transformer.compute_dtype == torch.float32
    assert other.config["guidance_scale"] == 1.5
    assert {key: value.dtype for key, value in source.transformer.named_parameters()} == before
    assert np.array_equal(pixels(call(source, name)), expected)


@each_model
@torch.no_grad()
def test_the_image_processor_draws_what_a_call_draws(name):
    pipeline = made(name)
    output = call(pipeline, name, output_type="latent")
    height, _ = pipeline.pixels(pipeline.schedule())
    assert latents(output).shape[-2] * pipeline.vae_scale_factor == height
    if not pipeline.draws_videos:
        decoded = pipeline.vae.decode(latents(output), return_dict=False)[0]
        [picture] = pipeline.image_processor.postprocess(decoded)
        assert np.array_equal(np.asarray(picture), pixels(call(pipeline, name)))


@pytest.mark.parametrize("arguments", [{}, {"dtype": torch.float32}])
def test_the_embedded_model_is_opened_by_its_class_too(arguments):
    import stepvar
    from stepvar.embedded import MODELS as FOLDERS

    embedded = stepvar.load_embedded()
    opened = stepvar.InfinityPipeline.from_pretrained(FOLDERS["pictures"], **arguments)
    again = stepvar.InfinityPipeline(**embedded.components)
    prompt = "two yellow stars above a striped blue ring on sand"
    expected = pixels(embedded(prompt, seed=1))
    for pipeline in (opened, again):
        assert np.array_equal(pixels(pipeline(prompt, seed=1)), expected)
