"""The pipeline: prompts in, pictures out, and wrong inputs refused before anything is computed."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from stepvar import InfinityPipeline, InfinityVAE, StepVAR
from stepvar.models.common.t5 import encode_prompts
from tiny_models import SMALL, make_transformer

GRIDS = [[scale.height, scale.width] for scale in SMALL]
WORDS = ["a", "red", "blue", "green", "yellow", "ring", "star", "on", "sand", "two", "big", "small"]
PRUNING = StepVAR(ratios={-2: 0.4, -1: 0.6})


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_encoder() -> T5EncoderModel:
    torch.manual_seed(0)
    return T5EncoderModel(
        T5Config(vocab_size=16, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    ).eval()


def make_vae(patchify: bool = False, channels: int = 4) -> InfinityVAE:
    torch.manual_seed(1)
    multipliers = (1, 1, 1, 1)
    return InfinityVAE(channels, 24, multipliers, multipliers, 1, 1, patchify=patchify).eval()


def make_pipeline(**transformer) -> InfinityPipeline:
    sizes = {"grids": GRIDS, "pixels_per_token": 8, "levels": 6, **transformer}
    pipeline = InfinityPipeline(make_transformer(**sizes), make_vae(), make_encoder(), make_tokenizer())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def pixels(output) -> list[np.ndarray]:
    return [np.asarray(image) for image in output.images]


def same(left, right) -> bool:
    pairs = zip(pixels(left), pixels(right), strict=True)
    return all(np.array_equal(first, second) for first, second in pairs)


def test_a_prompt_becomes_a_picture_and_a_report(pipeline):
    output = pipeline("a red ring on sand", seed=3)
    (image,) = output.images
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (80, 96))
    report = output.report
    assert report.seeds == [3]
    assert report.kept_tokens == report.total_tokens == SMALL.tokens
    assert report.stages.keys() == {"text", "scales", "decode"}
    assert all(seconds > 0 for seconds in report.stages.values())
    assert report.seconds == pytest.approx(sum(report.stages.values()))
    assert report.cache_bytes == SMALL.tokens * 3 * 64 * 2 * 2 * 4
    assert report.peak_bytes > 10**6
    settings = json.loads(json.dumps(report.as_json()))["settings"]
    assert settings["prompts"] == ["a red ring on sand"]
    assert (settings["width"], settings["height"]) == (80, 96)
    assert settings["guidance_scale"] == [3.0] * 6
    assert settings["pruning"] is None


def test_one_seed_draws_one_picture(pipeline):
    first = pipeline("a red ring", seed=1)
    assert same(first, pipeline("a red ring", seed=1))
    assert not same(first, pipeline("a red ring", seed=2))
    assert not same(first, pipeline("a blue star", seed=1))


def test_a_batch_draws_what_single_calls_draw(pipeline):
    prompts = ["a red ring", "two big blue star on sand", "green"]
    batch = pipeline(prompts, seed=[5, 6, 5], pruning=PRUNING)
    assert batch.report.seeds == [5, 6, 5]
    for index, (prompt, seed) in enumerate(zip(prompts, (5, 6, 5), strict=True)):
        single = pipeline(prompt, seed=seed, pruning=PRUNING)
        difference = pixels(batch)[index].astype(int) - pixels(single)[0]
        assert abs(difference).max() <= 1
        for scale, drawn in single.report.choices.items():
            assert torch.equal(batch.report.choices[scale][index], drawn[0])


def test_a_single_seed_counts_up_over_the_pictures(pipeline):
    output = pipeline(["a ring", "a star"], seed=7, num_images_per_prompt=2)
    assert output.report.seeds == [7, 8, 9, 10]
    listed = pipeline(["a ring", "a ring", "a star", "a star"], seed=[7, 8, 9, 10])
    assert same(output, listed)


def test_without_a_seed_the_reported_one_draws_the_picture_again(pipeline):
    output = pipeline("a ring")
    assert same(output, pipeline("a ring", seed=output.report.seeds[0]))
    assert not same(output, pipeline("a ring"))


def test_generators_stand_for_seeds(pipeline):
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    output = pipeline(["a ring", "a star"], generator=generators)
    assert output.report.seeds == [None, None]
    assert same(output, pipeline(["a ring", "a star"], seed=4))


def test_pruning_in_one_line(pipeline):
    dense = pipeline("a red ring", seed=1)
    for pruning, kept in (("paper", 1 + 4 + 8 + 15), ("prune", 47 + 32 + 30), ("skip", 47), (PRUNING, 133)):
        output = pipeline("a red ring", seed=1, pruning=pruning)
        assert output.report.kept_tokens == kept
        assert not same(dense, output)
    for pruning in (None, "none", StepVAR(ratios={-1: 0.0})):
        assert same(dense, pipeline("a red ring", seed=1, pruning=pruning))


@pytest.mark.parametrize("pruning", [None, "paper", "prune", "skip", PRUNING])
@pytest.mark.parametrize("guidance", [1.0, 3.0, [3.0, 3.0, 3.0, 1.0, 1.0, 1.0]])
def test_the_summary_tells_what_will_run(pipeline, pruning, guidance):
    told = pipeline.summary(pruning, guidance_scale=guidance, images=2)
    report = pipeline(["a ring", "a star"], seed=1, pruning=pruning, guidance_scale=guidance).report
    assert told.tokens == report.kept_tokens
    assert told.cache_bytes <= report.cache_bytes
    if isinstance(guidance, float):
        assert told.cache_bytes == report.cache_bytes
    for entry, cost, ran in zip(told.plan.scales, told.costs, report.scales, strict=True):
        assert (entry.kept, entry.skipped, cost.rows) == (ran.plan.kept, ran.plan.skipped, ran.rows)
    assert str(told).count("skipped") == sum(entry.skipped for entry in told.plan.scales)
    assert (told.flops < told.dense_flops) == (pruning is not None)


def test_negative_prompts_steer(pipeline):
    plain = pipeline(["a red ring", "a star"], seed=1)
    steered = pipeline(["a red ring", "a star"], seed=1, negative_prompt="big blue")
    assert not same(plain, steered)
    listed = pipeline(["a red ring", "a star"], seed=1, negative_prompt=["big blue", "big blue"])
    assert same(steered, listed)
    assert steered.report.settings["negative_prompts"] == ["big blue", "big blue"]
    assert same(plain, pipeline(["a red ring", "a star"], seed=1, negative_prompt=""))


def test_settings_reach_the_loop(pipeline):
    plain = pipeline("a ring", seed=1)
    changes = (
        {"guidance_scale": 1.0},
        {"guidance_scale": [1, 2, 3, 4, 5, 6]},
        {"guidance_layers": (-1,)},
        {"guidance_layers": (0, -2)},
        {"temperature": 2.0},
        {"temperature": [0.5, 0.5, 0.5, 0.5, 0.5, 2.0]},
        {"top_k": 1},
        {"top_p": 0.6},
    )
    outputs = [pipeline("a ring", seed=1, **change) for change in changes]
    assert not any(same(plain, output) for output in outputs)
    assert not same(pipeline("a ring", seed=1, guidance_layers=(0, -1)), outputs[2])
    greedy = [pipeline("a ring", seed=seed, top_k=1) for seed in (1, 2)]
    assert same(*greedy), "the likelier bit needs no noise"


def test_defaults_are_the_configuration(pipeline):
    explicit = {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 900, "top_p": 0.97}
    assert same(pipeline("a ring", seed=1), pipeline("a ring", seed=1, **explicit))


def test_embeddings_stand_for_prompts(pipeline):
    embeds = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["a ring", "two star"], 12)
    output = pipeline(prompt_embeds=embeds, seed=1)
    assert same(output, pipeline(["a ring", "two star"], seed=1))
    negatives = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["big", "big"], 12)
    steered = pipeline(prompt_embeds=embeds, negative_prompt_embeds=negatives, seed=1)
    assert same(steered, pipeline(["a ring", "two star"], negative_prompt="big", seed=1))


def test_a_pipeline_without_a_text_encoder_takes_embeddings_only(pipeline):
    lone = InfinityPipeline(pipeline.transformer, pipeline.vae)
    embeds = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["a ring"], 12)
    assert same(lone(prompt_embeds=embeds, seed=1), pipeline("a ring", seed=1))
    with pytest.raises(ValueError, match="no text encoder: pass encoded prompts, or convert"):
        lone("a ring")


def test_pictures_come_in_the_form_asked_for(pipeline):
    picture = pixels(pipeline("a ring", seed=1))[0]
    array = pipeline("a ring", seed=1, output_type="np").images
    tensor = pipeline("a ring", seed=1, output_type="pt").images
    latent = pipeline("a ring", seed=1, output_type="latent").images
    assert array.shape == (1, 96, 80, 3)
    assert 0 <= array.min() <= array.max() <= 1
    assert np.array_equal((array[0] * 255).astype(np.uint8), picture)
    assert torch.equal(tensor.permute(0, 2, 3, 1), torch.from_numpy(array))
    assert latent.shape == (1, 4, 12, 10)
    decoded = pipeline.vae.decode_pixels(latent)
    torch.testing.assert_close((decoded + 1) / 2, tensor)


def test_an_observer_may_stop_a_call_and_nothing_stays(pipeline):
    plain = pipeline("a ring", seed=1)
    attributes = set(vars(pipeline))
    heard = []

    def stop(report):
        heard.append(report)
        if len(heard) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline("a star", seed=9, pruning=StepVAR(ratios={-3: 0.5}), observer=stop)
    assert set(vars(pipeline)) == attributes
    assert same(plain, pipeline("a ring", seed=1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": ""}, r"The prompt is empty"),
        ({"prompt": "   "}, r"The prompt is empty"),
        ({"prompt": []}, r"prompt"),
        ({"prompt": ["a ring", " "]}, r"prompt 2 is empty"),
        ({"prompt": "a ring", "pruning": "fast"}, r"Unknown pruning preset 'fast'"),
        ({"prompt": "a ring", "pruning": StepVAR()}, r"names no scale to prune or skip"),
        ({"prompt": "a ring", "pruning": StepVAR(ratios={5: 0.5})}, r"No scale is 5 tokens high"),
        ({"prompt": "a ring", "pruning": StepVAR(ratios={1: 0.5})}, r"would change nothing"),
        ({"prompt": "a ring", "height": 96}, r"Give both height and width"),
        ({"prompt": "a ring", "height": 96, "width": 96}, r"draws 96x96 pixels .*nearest are 80x96\."),
        ({"prompt": "a ring", "height": 96, "width": 80, "aspect_ratio": 1.0}, r"not both"),
        ({"prompt": "a ring", "pixel_budget": "1M"}, r"Unknown pixel budget '1M'; known are 96x80"),
        ({"prompt": "a ring", "aspect_ratio": -1.0}, r"aspect_ratio is -1"),
        ({"prompt": "a ring", "aspect_ratio": float("nan")}, r"aspect_ratio is nan"),
        ({"prompt": "a ring", "guidance_scale": [3.0, 3.0]}, r"guidance_scale has 2 entries"),
        ({"prompt": "a ring", "guidance_layers": (1,)}, r"guidance_layers has 1"),
        ({"prompt": "a ring", "guidance_layers": (-3,)}, r"guidance_layers has -3"),
        ({"prompt": "a ring", "temperature": 0.0}, r"temperature is 0; it must be positive"),
        ({"prompt": "a ring", "top_k": -1}, r"top_k is -1"),
        ({"prompt": "a ring", "top_p": 1.5}, r"top_p is 1.5"),
        ({"prompt": "a ring", "seed": [1, 2]}, r"1 images need 1 seeds; got 2"),
        ({"prompt": "a ring", "seed": -1}, r"The seed -1 is out of range"),
        ({"prompt": "a ring", "num_images_per_prompt": 0}, r"num_images_per_prompt is 0"),
        ({"prompt": "a ring", "negative_prompt": ["big", "red"]}, r"One prompt needs one negative prompt"),
        ({"prompt": "a ring", "negative_prompt": " "}, r"negative prompt is empty"),
        ({"prompt": "a ring", "output_type": "jpeg"}, r"Unknown output_type 'jpeg'"),
        (
            {"prompt": ["a ring", "a star"], "generator": [torch.Generator()]},
            r"2 images need 2 generators; got 1",
        ),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(pipeline, call, words):
    ran = []
    modules = (pipeline.text_encoder, pipeline.transformer.text_norm, pipeline.vae.decoder)
    handles = [module.register_forward_hook(lambda *_: ran.append(1)) for module in modules]
    with pytest.raises(ValueError, match=words):
        pipeline(**call)
    for handle in handles:
        handle.remove()
    assert not ran


def test_unknown_words_name_the_close_ones(pipeline):
    with pytest.raises(ValueError, match=r"does not know 'yelow' \(close: yellow"):
        pipeline("a yelow ring")


def test_a_tokenizer_that_does_not_fit_is_refused():
    transformer = make_transformer(grids=GRIDS, pixels_per_token=8, levels=6)
    with pytest.raises(ValueError, match=r"4 bits per token of 8 x 8 pixels, but the tokenizer has 6 bits"):
        InfinityPipeline(transformer, make_vae(channels=6))
    with pytest.raises(ValueError, match=r"16 bits per token of 16 x 16 pixels"):
        InfinityPipeline(transformer, make_vae(patchify=True))


@pytest.fixture(scope="module")
def published_sizes():
    return InfinityPipeline(
        make_transformer(bits=16, budgets=["0.06M"]),
        make_vae(patchify=True),
        make_encoder(),
        make_tokenizer(),
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({}, (256, 256)),
        ({"aspect_ratio": 16 / 9}, (336, 192)),
        ({"aspect_ratio": 3 / 4}, (240, 320)),
        ({"height": 240, "width": 320}, (320, 240)),
    ],
)
def test_a_model_of_many_sizes_draws_the_one_asked_for(published_sizes, size, expected):
    report = published_sizes.summary("paper", **size)
    assert len(report.plan.scales) == 7
    output = published_sizes("a ring", seed=1, pruning="paper", **size)
    assert output.images[0].size == expected
    settings = output.report.settings
    assert (settings["width"], settings["height"]) == expected


def test_a_size_the_weights_were_not_trained_for_is_drawn_with_a_warning(published_sizes, caplog):
    with caplog.at_level(logging.WARNING):
        published_sizes.summary()
        assert not caplog.records
        published_sizes.summary(pixel_budget="0.25M")
    assert "trained for 0.06M pixels; 512x512 may look poor" in caplog.text


def test_a_saved_pipeline_draws_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = InfinityPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.guidance_scale == 3.0
    assert same(pipeline("a red ring", seed=1), loaded("a red ring", seed=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws(dtype):
    half = make_pipeline().to(dtype)
    output = half("a red ring", seed=1, pruning="prune")
    assert output.report.settings["dtype"] == str(dtype).removeprefix("torch.")
    (picture,) = pixels(output)
    assert picture.std() > 1
    assert output.report.cache_bytes * 2 == make_pipeline().summary("prune").cache_bytes
