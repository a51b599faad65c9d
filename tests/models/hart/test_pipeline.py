"""The pipeline: prompts in, pictures out, and wrong inputs refused before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar import FastVAR, HARTPipeline, StepVAR
from stepvar.models.hart.text import ContextFeatures, encode_prompts
from tiny_hart import CONTEXT, SIDES, make_hart, make_pipeline, make_vae

TOKENS = sum(side * side for side in SIDES)


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def pixels(output) -> list[np.ndarray]:
    return [np.asarray(image) for image in output.images]


def same(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(pixels(left), pixels(right), strict=True))


def test_a_prompt_becomes_a_picture_and_a_report(pipeline):
    output = pipeline("a red ring on sand", seed=3)
    (image,) = output.images
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    report = output.report
    assert report.seeds == [3]
    assert report.kept_tokens == report.total_tokens == TOKENS
    assert report.cache_bytes == (TOKENS + CONTEXT - 1) * 3 * 32 * 2 * 2 * 4
    settings = json.loads(json.dumps(report.as_json()))["settings"]
    assert settings["prompts"] == ["a red ring on sand"]
    assert (settings["width"], settings["height"]) == (32, 32)
    assert settings["guidance_scale"][0] == 1.0
    assert settings["guidance_scale"][-1] == pytest.approx(1.0 + 4.5 * 4 / 5)
    assert (settings["smooth"], settings["residual"], settings["parts"]) == (True, "all", 1)


def test_a_batch_draws_what_single_calls_draw(pipeline):
    prompts, negatives = ["a red ring", "two big blue star on sand"], ["green", "sand"]
    options = {"pruning": "paper", "parts": 1}
    batch = pipeline(prompts, negative_prompt=negatives, seed=[5, 9], **options)
    for index, (prompt, negative, seed) in enumerate(zip(prompts, negatives, (5, 9), strict=True)):
        single = pipeline(prompt, negative_prompt=negative, seed=seed, **options)
        assert abs(pixels(batch)[index].astype(int) - pixels(single)[0]).max() <= 1
        for scale, choice in single.report.choices.items():
            assert torch.equal(batch.report.choices[scale][index], choice[0])


def test_seeds_prompts_and_options_matter(pipeline):
    first = pipeline("a red ring", seed=1)
    assert same(first, pipeline("a red ring", seed=1))
    assert same(
        first,
        pipeline(
            "a red ring", seed=1, guidance_scale=[1.0 + 4.5 * share for share in (0, 0.2, 0.4, 0.6, 0.8, 0.8)]
        ),
    )
    for changed in (
        {"seed": 2},
        {"smooth": False},
        {"residual": "none"},
        {"parts": 2},
        {"guidance_scale": 2.5},
        {"negative_prompt": "green sand"},
        {"top_k": 1},
        {"temperature": 3.0},
        {"pruning": "fastvar"},
    ):
        assert not same(first, pipeline("a red ring", **{"seed": 1, **changed})), changed


def test_pictures_count_seeds_up(pipeline):
    output = pipeline(["a ring", "a star"], seed=7, num_images_per_prompt=2)
    assert output.report.seeds == [7, 8, 9, 10]
    listed = pipeline(["a ring", "a ring", "a star", "a star"], seed=[7, 8, 9, 10])
    assert same(output, listed)


def test_embedded_prompts_draw_what_prompts_draw(pipeline):
    context = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["a ring", "a star"], CONTEXT)
    assert same(pipeline(["a ring", "a star"], seed=1), pipeline(prompt_embeds=context, seed=1))
    wrong = ContextFeatures.empty(1, CONTEXT + 1, 24, torch.device("cpu"))
    with pytest.raises(ValueError, match="the model reads 7 tokens of 24 channels"):
        pipeline(prompt_embeds=wrong)
    with pytest.raises(ValueError, match="2 prompts need as many negatives; got 1"):
        pipeline(prompt_embeds=context, negative_prompt_embeds=wrong)
    with pytest.raises(ValueError, match="the model reads 7 tokens of 24 channels"):
        pipeline(prompt_embeds=context, negative_prompt_embeds=wrong.repeat(2))


def test_a_long_prompt_is_cut_with_a_warning(pipeline, caplog):
    cut = pipeline("two big blue star on sand a red ring", seed=1)
    assert "has 9 tokens, but the model reads 7; ignored is 'red ring'" in caplog.text
    assert same(cut, pipeline("two big blue star on sand a", seed=1))


@pytest.mark.parametrize("pruning", [None, "paper", "skip", "fastvar", StepVAR(ratios={8: 0.9, 6: 0.3})])
@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"residual": "none"}])
def test_the_summary_tells_what_will_run(pipeline, pruning, options):
    told = pipeline.summary(pruning, images=2, **options)
    report = pipeline(["a ring", "a star"], seed=1, pruning=pruning, **options).report
    assert told.tokens == report.kept_tokens
    assert told.cache_bytes == report.cache_bytes
    for entry, cost, ran in zip(told.plan.scales, told.costs, report.scales, strict=True):
        assert (entry.kept, entry.skipped, cost.rows) == (ran.plan.kept, ran.plan.skipped, ran.rows)
    assert (told.flops < told.dense_flops) == (pruning is not None)


def test_the_diffusion_head_is_counted_where_it_runs(pipeline):
    flops = {name: pipeline.summary("paper", residual=name).flops for name in ("all", "kept", "none")}
    head = pipeline.transformer.residual_head
    once = sum(layer.weight.numel() for layer in (head.input, head.output, head.output_modulation))
    once += sum(block.up.weight.numel() * 5 for block in head.blocks)
    a_token = 2 * 2 * (head.condition_embedding.weight.numel() + 3 * once)
    assert flops["all"] - flops["none"] == 64 * a_token
    assert flops["kept"] - flops["none"] == 16 * a_token


def test_paper_and_fastvar_prune_the_same_tokens(pipeline):
    plans = [pipeline.summary(name).plan for name in ("paper", "fastvar")]
    assert [[entry.kept for entry in plan.scales] for plan in plans] == [[1, 4, 9, 16, 18, 16]] * 2
    with pytest.raises(ValueError, match="drawn in parts"):
        pipeline.summary(FastVAR(ratios={-1: 0.5}), parts=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "is empty"),
        ({"prompt": "a ring", "output_type": "jpg"}, "Unknown output_type"),
        ({"prompt": "a ring", "residual": "some"}, "Unknown residual 'some'; known are all, kept, none"),
        ({"prompt": "a ring", "parts": 99}, "cannot be drawn in 99 parts"),
        ({"prompt": "a ring", "height": 64, "width": 64}, "draws 32x32 pixels only, not 64x64"),
        ({"prompt": "a ring", "height": 48}, "not 32x48"),
        ({"prompt": "a ring", "guidance_scale": [1.0, 2.0]}, "2 entries"),
        ({"prompt": "a ring", "top_p": 2.0}, "top_p is 2"),
        ({"prompt": "a ring", "negative_prompt": ["a", "b"]}, "one negative prompt"),
        (
            {"prompt": "a ring", "pruning": "turbo"},
            "known are none, paper, prune, skip, fastvar, fastervar,",
        ),
        ({"prompt": "a ring", "num_images_per_prompt": 0}, "1 or more"),
        ({"prompt": "a ring", "seed": [1, 2]}, "1 images need 1 seeds"),
    ],
)
def test_wrong_inputs_are_refused_in_words(pipeline, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline(**arguments)


def test_without_a_text_encoder_prompts_are_refused():
    alone = HARTPipeline(make_hart(), make_vae())
    with pytest.raises(ValueError, match="no text encoder"):
        alone("a ring")
    with pytest.raises(ValueError, match="no text encoder"):
        alone.check_prompts(["a ring"])


def test_half_precision_draws_a_picture(pipeline):
    half = make_pipeline().to(torch.bfloat16)
    image = half("a red ring", seed=1, output_type="pt", pruning="paper").images
    assert image.shape == (1, 3, 32, 32)
    assert image.isfinite().all()
    full = pipeline("a red ring", seed=1, output_type="latent", guidance_scale=1.0, top_k=1, smooth=False)
    rough = half("a red ring", seed=1, output_type="latent", guidance_scale=1.0, top_k=1, smooth=False)
    agree = full.report.choices[1] == rough.report.choices[1]
    assert agree.float().mean() >= 0.5
