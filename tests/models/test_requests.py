"""What the calls of all models share: seeds, texts or their features, number formats, offloading."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stepvar import FastVAR, StepVAR
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline
from tiny_varedit import make_varedit_pipeline

PROMPT = "a red ring on sand"


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def test_a_call_without_a_seed_leaves_the_programs_random_numbers_alone(pipeline):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    seeds = {pipeline(PROMPT, output_type="latent").report.seeds[0] for _ in range(2)}
    assert torch.equal(torch.rand(3), expected)
    assert len(seeds) == 2


def test_seeds_may_be_numbers_of_numpy(pipeline):
    first = pipeline(PROMPT, seed=np.int64(3), output_type="latent")
    assert first.report.seeds == [3]
    assert torch.equal(first.images, pipeline(PROMPT, seed=3, output_type="latent").images)


def test_texts_and_their_features_are_not_given_both(pipeline):
    embeds = [torch.zeros(3, 32)]
    with pytest.raises(ValueError, match="prompt and prompt_embeds were both given"):
        pipeline(PROMPT, prompt_embeds=embeds)
    with pytest.raises(ValueError, match="negative_prompt and negative_prompt_embeds were both given"):
        pipeline(PROMPT, negative_prompt="blue", negative_prompt_embeds=embeds)
    with pytest.raises(ValueError, match="prompt_embeds is empty"):
        pipeline(prompt_embeds=[])


def test_a_wrong_number_of_negatives_is_refused_before_anything_is_encoded(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "encode", lambda prompts: pytest.fail("encoded"))
    with pytest.raises(ValueError, match="1 prompts need as many negatives; got 2"):
        pipeline(PROMPT, negative_prompt_embeds=[torch.zeros(3, 32)] * 2)


@pytest.mark.parametrize(
    "make",
    [
        make_pipeline,
        make_hart_pipeline,
        make_star_pipeline,
        make_switti_pipeline,
        make_var_pipeline,
        make_varedit_pipeline,
    ],
)
def test_what_stays_in_float32_stays_exact(make):
    pipe = make()
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]

    def exact():
        for part in parts:
            names = set(getattr(part, "_keep_in_fp32_modules", None) or ())
            for name, value in part.named_parameters():
                if names & set(name.split(".")):
                    yield name, value

    before = {name: value.detach().clone() for name, value in exact()}
    pipe.to(torch.bfloat16)
    assert before and pipe.transformer.compute_dtype == torch.bfloat16
    for name, value in exact():
        assert torch.equal(value, before[name]), name


def test_layer_by_layer_is_refused_where_it_cannot_run(pipeline):
    with pytest.raises(
        ValueError, match=r"InfinityPipeline cannot move layer by layer: use enable_model_cpu"
    ):
        pipeline.enable_sequential_cpu_offload()


def test_one_part_is_on_the_device_at_a_time():
    from accelerate import cpu_offload_with_hook

    pipe = make_pipeline()
    moves, pipe._all_hooks = [], []
    for name in ("text_encoder", "transformer", "vae"):
        part = getattr(pipe, name)
        _, hook = cpu_offload_with_hook(part, execution_device=torch.device("cpu"))
        hook.offload = lambda name=name: moves.append(name)
        pipe._all_hooks.append(hook)
    pipe.load_to_device(pipe.transformer)
    assert sorted(moves) == ["text_encoder", "vae"]


@pytest.mark.parametrize("method", [FastVAR, StepVAR])
def test_a_scale_with_guidance_is_filled_from_one_without(method):
    pipe = make_switti_pipeline()
    extra = {"recovery": "cache"} if method is StepVAR else {}
    settings = {"seed": 3, "guidance_start": 5, "output_type": "latent"}
    pruned = pipe(PROMPT, pruning=method(ratios={-1: 0.5}, **extra), **settings)
    assert torch.isfinite(pruned.images).all()
    assert not torch.equal(pruned.images, pipe(PROMPT, **settings).images)
