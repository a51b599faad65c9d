"""VAR's pipeline: classes in, pictures out, and wrong inputs refused before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar import StepVAR, VARPipeline
from tiny_var import PIXELS, SIDES, make_var, make_var_pipeline, make_vq_vae

NAMES = ["tench, Tinca tinca", "crane", "goldfish", "crane", "hen", "Great White, shark"]
PRUNING = StepVAR(ratios={-2: 0.4, -1: 0.6})
TOKENS = sum(side**2 for side in SIDES)


@pytest.fixture(scope="module")
def pipeline():
    return make_var_pipeline(NAMES)


def pixels(output) -> list[np.ndarray]:
    return [np.asarray(image) for image in output.images]


def same(left, right) -> bool:
    pairs = zip(pixels(left), pixels(right), strict=True)
    return all(np.array_equal(first, second) for first, second in pairs)


def test_a_class_becomes_a_picture_and_a_report(pipeline):
    output = pipeline(2, seed=3)
    (image,) = output.images
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (PIXELS, PIXELS))
    report = output.report
    assert report.seeds == [3]
    assert report.kept_tokens == report.total_tokens == TOKENS
    assert report.cache_bytes == TOKENS * 3 * 32 * 2 * 2 * 4
    settings = json.loads(json.dumps(report.as_json()))["settings"]
    assert settings["class_labels"] == [2]
    assert settings["prompts"] == ["goldfish"]
    assert settings["guidance_scale"] == pytest.approx([1.0 + 0.8 * index for index in range(6)])
    assert report.choices[5].shape == (1, 64)


def test_classes_by_number_by_text_and_by_name_are_the_same(pipeline):
    expected = pipeline(2, seed=1)
    for label in ("2", " 2 ", "goldfish", "GoldFish", [2], ["2"], ("goldfish",)):
        assert same(expected, pipeline(label, seed=1))
    assert pipeline.classes(["tinca tinca", "Tench", "tench, tinca tinca", "shark"]) == [0, 0, 0, 5]


def test_no_class_in_particular(pipeline):
    output = pipeline(-1, seed=1)
    assert output.report.settings["class_labels"] == [-1]
    assert not same(output, pipeline(0, seed=1))
    assert same(output, pipeline("-1", seed=1, guidance_scale=1.0)), "both copies are the same"


def test_a_batch_draws_what_single_calls_draw(pipeline):
    batch = pipeline([1, 2, 1], seed=[5, 6, 5], pruning=PRUNING)
    for index, (label, seed) in enumerate(zip((1, 2, 1), (5, 6, 5), strict=True)):
        single = pipeline(label, seed=seed, pruning=PRUNING)
        assert abs(pixels(batch)[index].astype(int) - pixels(single)[0]).max() <= 1
        for scale, drawn in single.report.choices.items():
            assert torch.equal(batch.report.choices[scale][index], drawn[0])


def test_seeds_and_generators(pipeline):
    output = pipeline([0, 1], seed=7, num_images_per_prompt=2)
    assert output.report.seeds == [7, 8, 9, 10]
    assert same(output, pipeline([0, 0, 1, 1], seed=[7, 8, 9, 10]))
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    assert same(pipeline([0, 0], generator=generators), pipeline([0, 0], seed=7))
    fresh = pipeline(0)
    assert same(fresh, pipeline(0, seed=fresh.report.seeds[0]))


def test_pruning_in_one_line(pipeline):
    dense = pipeline(0, seed=1)
    plans = (("paper", 1 + 4 + 6 + 13), ("prune", 39 + 18 + 16), ("skip", 39), (PRUNING, 39 + 22 + 26))
    for pruning, kept in plans:
        output = pipeline(0, seed=1, pruning=pruning)
        assert output.report.kept_tokens == kept
        assert not same(dense, output)
    for pruning in (None, "none", StepVAR(ratios={-1: 0.0})):
        assert same(dense, pipeline(0, seed=1, pruning=pruning))


@pytest.mark.parametrize("pruning", [None, "paper", "prune", "skip", PRUNING])
@pytest.mark.parametrize("guidance", [1.0, 4.0, [4.0, 4.0, 4.0, 1.0, 1.0, 1.0]])
def test_the_summary_tells_what_will_run(pipeline, pruning, guidance):
    told = pipeline.summary(pruning, guidance_scale=guidance, images=2)
    report = pipeline([0, 1], seed=1, pruning=pruning, guidance_scale=guidance).report
    assert told.tokens == report.kept_tokens
    assert told.cache_bytes == report.cache_bytes
    for entry, cost, ran in zip(told.plan.scales, told.costs, report.scales, strict=True):
        assert (entry.kept, entry.skipped, cost.rows) == (ran.plan.kept, ran.plan.skipped, ran.rows)
    assert (told.flops < told.dense_flops) == (pruning is not None)


def test_settings_reach_the_loop(pipeline):
    plain = pipeline(0, seed=1)
    changes = ({"guidance_scale": 1.0}, {"guidance_scale": [1, 2, 3, 4, 5, 6]}, {"top_k": 1})
    changes += ({"top_p": 0.3}, {"smooth": True})
    assert not any(same(plain, pipeline(0, seed=1, **change)) for change in changes)
    greedy = [pipeline(0, seed=seed, top_k=1) for seed in (1, 2)]
    assert same(*greedy), "the likeliest code needs no noise"
    explicit = {"guidance_scale": 5.0, "top_k": 900, "top_p": 0.95, "smooth": False}
    assert same(plain, pipeline(0, seed=1, **explicit))
    assert same(plain, pipeline(0, seed=1, guidance_scale=[1.0 + 0.8 * index for index in range(6)]))


def test_pictures_come_in_the_form_asked_for(pipeline):
    picture = pixels(pipeline(0, seed=1))[0]
    array = pipeline(0, seed=1, output_type="np").images
    latent = pipeline(0, seed=1, output_type="latent").images
    assert np.array_equal((array[0] * 255).astype(np.uint8), picture)
    assert latent.shape == (1, 8, 8, 8)
    tensor = pipeline(0, seed=1, output_type="pt").images
    torch.testing.assert_close((pipeline.vae.decode(latent).sample + 1) / 2, tensor)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"class_labels": []}, r"No class was given"),
        ({"class_labels": 6}, r"class 6 is out of range: this model draws classes 0 to 5, or -1"),
        ({"class_labels": [0, -2]}, r"class -2 is out of range"),
        ({"class_labels": "1000000000000"}, r"No class is called"),
        ({"class_labels": True}, r"The class True is a bool"),
        ({"class_labels": [1.5]}, r"The class 1.5 is a float"),
        ({"class_labels": "crane"}, r"2 classes are called 'crane': give the number, 1 or 3"),
        ({"class_labels": "fish"}, r"No class is called 'fish'; similar are 'goldfish'"),
        ({"class_labels": "dog"}, r"No class is called 'dog'; or give 0 to 5"),
        ({"class_labels": 0, "height": 64}, r"draws 32x32 pixels only, not 32x64"),
        ({"class_labels": 0, "height": 0, "width": 0}, r"not 0x0"),
        ({"class_labels": 0, "pruning": "fast"}, r"Unknown pruning preset 'fast'"),
        ({"class_labels": 0, "pruning": StepVAR()}, r"names no scale to prune or skip"),
        ({"class_labels": 0, "guidance_scale": [3.0]}, r"guidance_scale has 1 entries"),
        ({"class_labels": 0, "top_k": -1}, r"top_k is -1"),
        ({"class_labels": 0, "top_p": 1.5}, r"top_p is 1.5"),
        ({"class_labels": 0, "seed": [1, 2]}, r"1 images need 1 seeds; got 2"),
        ({"class_labels": 0, "num_images_per_prompt": 0}, r"num_images_per_prompt is 0"),
        ({"class_labels": 0, "output_type": "jpeg"}, r"Unknown output_type 'jpeg'"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(pipeline, call, words):
    ran = []
    handle = pipeline.transformer.class_embedding.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=words):
        pipeline(**call)
    handle.remove()
    assert not ran


def test_without_names_a_name_is_refused():
    with pytest.raises(ValueError, match="this model knows no names: give 0 to 5"):
        make_var_pipeline()("tench")


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 labels were given for 6 classes"):
        make_var_pipeline(["a", "b"])
    with pytest.raises(ValueError, match="40 codes of 8 channels for 4 x 4 pixels, but the tokenizer has 41"):
        VARPipeline(make_var(), make_vq_vae(codes=41))


def test_a_saved_pipeline_draws_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = VARPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert same(pipeline("goldfish", seed=1), loaded("goldfish", seed=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws(dtype):
    half = make_var_pipeline().to(dtype)
    output = half(1, seed=1, pruning="prune", smooth=True)
    assert output.report.settings["dtype"] == str(dtype).removeprefix("torch.")
    assert pixels(output)[0].std() > 1
    assert output.report.cache_bytes * 2 == make_var_pipeline().summary("prune").cache_bytes
