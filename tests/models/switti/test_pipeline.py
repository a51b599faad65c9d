"""Switti's pipeline: prompts in, pictures out, and wrong inputs refused before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stepvar import StepVAR, SwittiPipeline
from stepvar.models.switti.text import encode_ids, encode_prompts
from tiny_switti import make_switti, make_switti_pipeline, make_words
from tiny_var import SIDES, make_vq_vae

PRUNING = StepVAR(ratios={-2: 0.4, -1: 0.6})


@pytest.fixture(scope="module")
def pipeline():
    return make_switti_pipeline()


def pixels(output) -> list[np.ndarray]:
    return [np.asarray(image) for image in output.images]


def same(left, right) -> bool:
    pairs = zip(pixels(left), pixels(right), strict=True)
    return all(np.array_equal(first, second) for first, second in pairs)


def test_a_prompt_becomes_a_picture_and_a_report(pipeline):
    output = pipeline("a red ring on sand", seed=3)
    assert output.images[0].size == (32, 32)
    assert output.report.cache_bytes == 0
    settings = json.loads(json.dumps(output.report.as_json()))["settings"]
    assert settings["prompts"] == ["a red ring on sand"]
    assert settings["negative_prompts"] == [""]
    assert settings["guidance_scale"] == pytest.approx([1.0 + 1.2 * index for index in range(6)])
    assert same(output, pipeline("a red ring on sand", seed=3))
    assert not same(output, pipeline("a blue star", seed=3))


def test_a_batch_draws_what_single_calls_draw(pipeline):
    prompts = ["a red ring", "two big blue star on sand", "a"]
    batch = pipeline(prompts, seed=[5, 6, 5], pruning=PRUNING)
    for index, (prompt, seed) in enumerate(zip(prompts, (5, 6, 5), strict=True)):
        single = pipeline(prompt, seed=seed, pruning=PRUNING)
        assert abs(pixels(batch)[index].astype(int) - pixels(single)[0]).max() <= 1


def test_settings_reach_the_loop(pipeline):
    plain = pipeline("a ring", seed=1)
    changes = (
        {"guidance_scale": 1.0},
        {"guidance_start": 3},
        {"guidance_stop": 4},
        {"top_k": 1},
        {"top_p": 0.3},
        {"smooth": True},
        {"negative_prompt": "big blue"},
        {"pruning": "prune"},
    )
    assert not any(same(plain, pipeline("a ring", seed=1, **change)) for change in changes)
    off = pipeline("a ring", seed=1, guidance_stop=4)
    assert not same(off, pipeline("a ring", seed=1, guidance_stop=4, late_temperature=0.1))
    assert same(plain, pipeline("a ring", seed=1, late_temperature=0.1)), "guidance is never off"
    mixed = pipeline("a ring", seed=1, smooth=True, smooth_start=5)
    assert not same(mixed, plain)
    assert not same(mixed, pipeline("a ring", seed=1, smooth=True))
    assert same(plain, pipeline("a ring", seed=1, smooth=True, smooth_start=6))


@pytest.mark.parametrize("pruning", [None, "paper", PRUNING])
@pytest.mark.parametrize("causal", [False, True])
def test_the_summary_tells_what_will_run(pipeline, pruning, causal):
    model = make_switti_pipeline(causal=True) if causal else pipeline
    told = model.summary(pruning, guidance_stop=4, images=2)
    report = model(["a ring", "a star"], seed=1, pruning=pruning, guidance_stop=4).report
    assert told.tokens == report.kept_tokens
    for entry, cost, ran in zip(told.plan.scales, told.costs, report.scales, strict=True):
        assert (entry.kept, entry.skipped, cost.rows) == (ran.plan.kept, ran.plan.skipped, ran.rows)
    assert told.cache_bytes == report.cache_bytes
    assert (report.cache_bytes > 0) == causal


def test_padding_changes_nothing(pipeline):
    tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2]
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
    alone = encode_prompts(tokenizers, encoders, ["a ring"])
    both = encode_prompts(tokenizers, encoders, ["two big blue star on sand", "a ring", "", "a ring"])
    assert [len(tokens) for tokens in both.tokens] == [8, 4, 2, 4]
    torch.testing.assert_close(both.tokens[1], alone.tokens[0])
    torch.testing.assert_close(both.pooled[1], alone.pooled[0])
    assert torch.equal(both.tokens[3], both.tokens[1])
    ids = torch.tensor([tokenizers[0]("a ring").input_ids + [0] * 5])
    features, pooled = encode_ids(encoders, [ids, ids], [(ids > 0).long()] * 2)
    torch.testing.assert_close(features[0, :4], alone.tokens[0])
    torch.testing.assert_close(pooled[0], alone.pooled[0])


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(pipeline):
    with pytest.warns(UserWarning, match=r"has 14 tokens, but the model reads 12; ignored is 'sand sand'"):
        cut = pipeline("a red ring on sand sand sand sand sand sand sand sand", seed=1)
    assert same(cut, pipeline("a red ring on sand sand sand sand sand sand", seed=1))
    with pytest.raises(ValueError, match="14 tokens, but the model reads at most 12"):
        pipeline.check_prompts(["a red ring on sand sand sand sand sand sand sand sand"])


def test_features_stand_for_prompts(pipeline):
    tokenizers, encoders = [make_words()] * 2, [pipeline.text_encoder, pipeline.text_encoder_2]
    features = encode_prompts(tokenizers, encoders, ["a ring"])
    lone = SwittiPipeline(pipeline.transformer, pipeline.vae)
    empty = encode_prompts(tokenizers, encoders, [""])
    output = lone(prompt_embeds=features, negative_prompt_embeds=empty, seed=1)
    assert same(output, pipeline("a ring", seed=1))
    with pytest.raises(ValueError, match="no text encoder: pass encoded prompts, or convert"):
        lone("a ring")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": ""}, r"The prompt is empty"),
        ({"prompt": "a", "height": 64, "width": 64}, r"draws 32x32 pixels only, not 64x64"),
        ({"prompt": "a", "guidance_start": -1}, r"guidance_start is -1"),
        ({"prompt": "a", "late_temperature": 0.0}, r"late_temperature is 0"),
        ({"prompt": "a", "top_k": -1}, r"top_k is -1"),
        ({"prompt": "a", "negative_prompt": ["b", "c"]}, r"One prompt needs one negative prompt; got 2"),
        ({"prompt": "a", "pruning": "fast"}, r"Unknown pruning preset"),
        ({"prompt": "a", "num_images_per_prompt": 0}, r"num_images_per_prompt is 0"),
        ({"prompt": "a", "output_type": "jpeg"}, r"Unknown output_type"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(pipeline, call, words):
    ran = []
    handle = pipeline.text_encoder.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=words):
        pipeline(**call)
    handle.remove()
    assert not ran


def test_a_saved_pipeline_draws_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = SwittiPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert same(pipeline("a red ring", seed=1), loaded("a red ring", seed=1))


def test_half_precision_draws():
    half = make_switti_pipeline().to(torch.bfloat16)
    output = half("a red ring", seed=1, pruning="prune", smooth=True)
    assert output.report.settings["dtype"] == "bfloat16"
    assert pixels(output)[0].std() > 1


def test_a_tokenizer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="40 codes of 8 channels for 4 x 4 pixels, but the tokenizer has 41"):
        SwittiPipeline(make_switti(), make_vq_vae(codes=41))
    assert make_switti().schedule.final.height == SIDES[-1]
