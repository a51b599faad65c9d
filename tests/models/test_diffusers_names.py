"""Names of diffusers' pipelines that are typed out of habit: they work, or one sentence names what to use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.callbacks import PipelineCallback

from stepvar.models.absent import _ABSENT
from stepvar.models.arguments import _INSTEAD
from tiny_pipelines import MAKERS, made, needed

NAMES = [name for name in MAKERS if name != "causal switti"]
TEXT_MODELS = [name for name in NAMES if name != "var"]
each_model = pytest.mark.parametrize("name", NAMES)
CPU = torch.device("cpu")


def fresh(name: str) -> Any:
    pipeline = MAKERS[name][0]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, name: str, **options: Any) -> torch.Tensor:
    """Accumulated codes of one picture, or of a video of one frame."""
    options = {"seed": 3, "output_type": "latent", **needed(pipeline), **options}
    if not options.keys() & {"prompt_embeds"}:
        options[pipeline._subject] = MAKERS[name][1][0]
    output = pipeline(**options)
    return output.frames if pipeline.draws_videos else output.images


@each_model
def test_attributes_that_are_not_there_say_what_to_use(name):
    pipeline = made(name)
    for attribute in _ABSENT:
        if attribute in pipeline.components or hasattr(type(pipeline), attribute):
            continue
        assert not hasattr(pipeline, attribute)
        with pytest.raises(AttributeError, match=f"Pipeline has no {attribute}: ") as caught:
            getattr(pipeline, attribute)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_thing'"):
        _ = pipeline.no_such_thing


@each_model
def test_parts_that_nothing_would_read_cannot_be_set(name):
    pipeline = fresh(name)
    for part in ("scheduler", "unet", "safety_checker", "controlnet"):
        with pytest.raises(AttributeError, match=f"has no {part}"):
            setattr(pipeline, part, torch.nn.Identity())
    pipeline.safety_checker = None
    for value in ("guidance_scale", "_guidance_scale"):
        with pytest.raises(ValueError, match="planned before a call"):
            setattr(pipeline, value, 0.0)


@each_model
def test_every_argument_of_other_pipelines_is_refused_but_none_is_none(name):
    pipeline = made(name)
    for argument in _INSTEAD:
        if argument in pipeline.__call__.__signature__.parameters:
            continue
        with pytest.raises(ValueError, match=f"Pipeline takes no {argument}: ") as caught:
            draw(pipeline, name, **{argument: 1})
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    unsaid = {"num_inference_steps": None, "latents": None, "callback": None, "clip_skip": None}
    assert torch.equal(draw(pipeline, name, **unsaid), draw(pipeline, name))
    assert pipeline.summary(**unsaid).costs == pipeline.summary().costs


@each_model
def test_guidance_can_be_read_while_a_call_runs(name):
    pipeline, seen = fresh(name), []
    assert pipeline.guidance_scale == pipeline.config["guidance_scale"]

    def look(pipe: Any, *_: Any) -> None:
        seen.append(pipe.guidance_scale)

    draw(pipeline, name, guidance_scale=2.5, callback_on_step_end=look)
    # HART and Switti grow to it at a scale that is not reached.
    assert len(set(seen)) == 1 and 1.0 < seen[0] <= 2.5
    assert seen[0] == 2.5 or name in ("hart", "switti")


class Named(PipelineCallback):
    """A callback of diffusers' kind, which says itself what it is given."""

    def __init__(self, *names: str) -> None:
        super().__init__(cutoff_step_ratio=None, cutoff_step_index=0)
        self.names, self.seen = names, []

    @property
    def tensor_inputs(self) -> list[str]:
        return list(self.names)

    def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
        self.seen.append(step)
        return tensors


@each_model
def test_callbacks_of_diffusers_own_say_what_they_need(name):
    pipeline, callback = made(name), Named("latents")
    draw(pipeline, name, callback_on_step_end=callback)
    assert len(callback.seen) == pipeline.num_timesteps
    with pytest.raises(ValueError, match="'prompt_embeds'; known are latents; changing guidance"):
        draw(pipeline, name, callback_on_step_end=Named("prompt_embeds"))
    with pytest.raises(ValueError, match="callback_on_step_end is of type int"):
        draw(pipeline, name, callback_on_step_end=5)


@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize("negative", [None, "a blue ring"])
def test_prompts_may_be_encoded_before(name, negative):
    pipeline = made(name)
    prompts = MAKERS[name][1]
    own = needed(pipeline)
    described = {"seconds": 0} if pipeline.draws_videos else {}
    expected = pipeline(prompts, negative_prompt=negative, seed=3, output_type="latent", **own)
    encoded = pipeline.encode_prompt(prompts, negative_prompt=negative, **described)
    assert (encoded.negative_prompt_embeds is None) == (negative is None)
    found = pipeline(**encoded._asdict(), seed=3, output_type="latent", **own)
    field = "frames" if pipeline.draws_videos else "images"
    assert torch.equal(getattr(found, field), getattr(expected, field))
    embeds, mask, *_ = pipeline.encode_prompt(
        prompts[0], do_classifier_free_guidance=False, num_images_per_prompt=2, device="cpu"
    )
    assert len(embeds) == len(mask) == 2 and not embeds.requires_grad


def test_a_pipeline_of_classes_encodes_no_prompts():
    with pytest.raises(ValueError, match="has no text encoder"):
        made("var").encode_prompt("a red star")
    assert not hasattr(made("var"), "tokenizer")


@each_model
def test_latents_are_neither_scaled_nor_shifted(name, tmp_path):
    vae = made(name).vae
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (1.0, 0.0)
    vae.save_pretrained(tmp_path)
    assert "scaling_factor" not in (tmp_path / "config.json").read_text()
    assert type(vae).from_pretrained(tmp_path).config.scaling_factor == 1.0


@each_model
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices_that_are_not_there_are_refused_in_words(name):
    pipeline = fresh(name)
    for device in ("cuda", "cuda:1", torch.device("cuda"), "xpu"):
        with pytest.raises(ValueError, match="is not there, this machine has 0"):
            pipeline.to(device)
    assert pipeline.to("cpu") is pipeline and pipeline.device == CPU
    with pytest.raises(ValueError, match=r"enable_model_cpu_offload\(\) moves parts between"):
        pipeline.enable_model_cpu_offload()
    with pytest.raises(ValueError, match=r"cannot move layer by layer|moves parts between"):
        pipeline.enable_sequential_cpu_offload()
    with pytest.raises(ValueError, match="Attention is not sliced"):
        pipeline.set_attention_slice(1)
    for undo in ("attention_slicing", "xformers_memory_efficient_attention", "freeu"):
        getattr(pipeline, f"disable_{undo}")()


@each_model
def test_parts_are_offloaded_one_by_one_or_in_groups(name):
    expected = draw(made(name), name)
    part_by_part, grouped = fresh(name), fresh(name)
    part_by_part.enable_model_cpu_offload(device=CPU)
    grouped.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    with torch.inference_mode():
        assert torch.equal(draw(part_by_part, name), expected)
    assert torch.equal(draw(part_by_part, name), expected)
    assert torch.equal(draw(grouped, name), expected)


@each_model
def test_calls_on_adapters_that_are_not_there_are_refused(name):
    pytest.importorskip("peft")
    pipeline = made(name)
    for call in (
        lambda: pipeline.fuse_lora(),
        lambda: pipeline.enable_lora(),
        lambda: pipeline.set_adapters("mine"),
        lambda: pipeline.delete_adapters("mine"),
        lambda: pipeline.set_lora_device(["mine"], "cpu"),
    ):
        with pytest.raises(ValueError, match="No adapter is loaded"):
            call()
    for loading in (
        ("load_lora_weights",) if name == "var" else ("load_lora_weights", "load_textual_inversion")
    ):
        with pytest.raises(ValueError, match="There is no '/nowhere/x'"):
            getattr(pipeline, loading)("/nowhere/x")


def test_adapters_are_named_and_weighed_as_in_diffusers():
    peft = pytest.importorskip("peft")
    pipeline = fresh("infinity")
    plain = draw(pipeline, "infinity")
    for adapter in ("a", "b"):
        config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
        pipeline.transformer.add_adapter(config, adapter_name=adapter)
    with pytest.raises(ValueError, match="There is no adapter 'c'; loaded are a, b"):
        pipeline.delete_adapters("c")
    with pytest.raises(ValueError, match="adapter_weights has 'unet'"):
        pipeline.set_adapters("a", {"unet": 0.5})
    pipeline.set_adapters(["a", "b"], adapter_weights=[0.0, 0.0])
    assert torch.equal(draw(pipeline, "infinity"), plain)
    pipeline.set_adapters("a", {"transformer": 0.5})
    assert not torch.equal(draw(pipeline, "infinity"), plain)
    pipeline.disable_lora()
    assert torch.equal(draw(pipeline, "infinity"), plain)


def test_a_new_word_can_be_forgotten():
    pipeline = fresh("infinity")
    width = pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    plain = draw(pipeline, "infinity")
    pipeline.load_textual_inversion({"heart": torch.ones(width)})
    pipeline("a red heart", seed=1, output_type="latent")
    pipeline.unload_textual_inversion()
    with pytest.raises(ValueError, match="does not know 'heart'"):
        pipeline("a red heart")
    assert torch.equal(draw(pipeline, "infinity"), plain)
    with pytest.raises(ValueError, match="has no text encoder"):
        made("var").unload_textual_inversion()


@torch.no_grad()
def test_a_video_processor_draws_what_a_call_draws():
    pipeline = made("infinitystar")
    latent = draw(pipeline, "infinitystar")
    decoded = pipeline.vae.decode(latent).sample
    [frames] = pipeline.video_processor.postprocess_video(decoded, output_type="pil")
    expected = pipeline(MAKERS["infinitystar"][1][0], seed=3, seconds=0).frames[0]
    assert [frame.tobytes() for frame in frames] == [frame.tobytes() for frame in expected]


@each_model
def test_a_side_is_a_whole_number_of_pixels(name):
    for size in ({"height": "64", "width": "64"}, {"height": 64.5, "width": 64}):
        with pytest.raises(ValueError, match="give a whole number of pixels"):
            draw(made(name), name, **size)


@each_model
def test_a_score_may_be_a_function(name):
    from stepvar import StepVAR

    def loudest(tokens: Any) -> torch.Tensor:
        return tokens.features.float().abs().mean(dim=-1)

    pipeline = made(name)
    plan = StepVAR({-1: 0.5}, score=loudest)
    drawn = pipeline(MAKERS[name][1][0], seed=3, pruning=plan, **needed(pipeline))
    report = drawn.report
    assert report.kept_tokens < report.total_tokens
    assert "loudest" in str(report.settings["pruning"])
