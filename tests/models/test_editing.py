"""Edits with every model of pictures: what stays, what runs, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar import FasterVAR, FastVAR, ScaleKV, SkipVAR, StepVAR
from stepvar.editing.known_tokens import KnownTokens, SourceFeatures
from tiny_pipelines import MAKERS, MASKED, made

PLANS = {
    "fastervar": FasterVAR(shares={-1: (0.2, 0.3)}, unguided=-2, remaining="unconditional"),
    "region": "region",
    "dense": None,
    "paper": "paper",
    "stepvar": StepVAR(ratios={-2: 0.4, -1: 0.6}, recovery="guided", values="expected"),
    "copied": StepVAR(ratios={-1: 0.6}, values="copied", unguided=-2),
    "cached": StepVAR(ratios={-1: 0.5}, recovery="cache"),
    "anchors": StepVAR(ratios={-1: 0.6}, recovery="anchor", anchor_stride=4),
    "fastvar": FastVAR(ratios={-2: 0.4, -1: 0.6}),
    "fastvar in all layers": FastVAR(ratios={-1: 0.5}, first_layer=0, dense_end=0),
    "skipvar": SkipVAR(),
    "scalekv": ScaleKV(share=0.1, pruning=StepVAR(ratios={-1: 0.5})),
}


def side(name: str) -> int:
    return made(name).pixels(made(name).schedule())[0]


def noise(name: str, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side(name), side(name), 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def corner(name: str) -> tuple[int, int, int, int]:
    return (0, 0, side(name) // 4, side(name) // 4)


def edit(name: str, count: int = 1, **given):
    subjects = [MAKERS[name][1][number % 2] for number in range(count)]
    options = {"image": noise(name), "box": corner(name), "seed": 5, "margin": 1, **given}
    return made(name).edit(subjects, **options)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MASKED)
def test_pixels_outside_of_the_mask_stay_and_what_is_promised_runs(name, plan):
    if name == "switti" and plan == "scalekv":
        pytest.skip("it keeps no keys and values between scales")
    output = edit(name, pruning=PLANS[plan])
    before, after = np.asarray(noise(name)), np.asarray(output.images[0])
    mask = np.asarray(output.masks[0]) > 0
    assert np.array_equal(before[~mask], after[~mask]) and (before[mask] != after[mask]).any()
    summary = made(name).summary(
        PLANS[plan],
        image=noise(name),
        box=corner(name),
        margin=1,
        **{made(name)._subject: MAKERS[name][1][:1]},
    )
    if not summary.plan.decides:
        assert [entry.plan.kept for entry in output.report.scales] == [
            entry.kept for entry in summary.plan.scales
        ]
    assert summary.cache_bytes == output.report.cache_bytes
    assert (summary.flops < 0.7 * summary.dense_flops) == (plan != "dense")
    again = edit(name, pruning=PLANS[plan])
    assert np.array_equal(after, np.asarray(again.images[0]))


@pytest.mark.parametrize("plan", ["region", "stepvar", "fastvar"])
@pytest.mark.parametrize("name", MASKED)
def test_a_picture_does_not_depend_on_those_beside_it(name, plan):
    half = side(name) // 2
    boxes = [corner(name), (half, half, half, half), corner(name)]
    images = [noise(name, seed) for seed in range(3)]
    together = edit(name, 3, image=images, box=boxes, pruning=PLANS[plan], output_type="latent")
    for number in range(3):
        alone = made(name).edit(
            MAKERS[name][1][number % 2],
            image=images[number],
            box=boxes[number],
            margin=1,
            seed=5 + number,
            pruning=PLANS[plan],
            output_type="latent",
        )
        torch.testing.assert_close(together.images[number], alone.images[0], rtol=0, atol=2e-2)
    assert together.report.seeds == [5, 6, 7] and len(together.notes) == 3


@pytest.mark.parametrize("name", MASKED)
def test_the_latent_is_the_encoders_where_nothing_was_drawn(name):
    output = edit(name, output_type="latent")
    pixels = torch.from_numpy(np.array(noise(name))).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    with torch.no_grad():
        features = made(name).vae.encode_features(pixels)
    changed = (output.images != features).any(dim=1)[0]
    cells = changed.shape[0] // 4
    assert changed[:cells, :cells].all() and changed.sum() == cells**2


def known_run(name: str, free: bool):
    """A run with all tokens known, or all of them drawn, beside a method that prunes."""
    pipeline, method = made(name), StepVAR(ratios={-1: 0.5})
    schedule = pipeline.schedule()
    pixels = torch.from_numpy(np.array(noise(name))).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    with torch.no_grad():
        features = pipeline.vae.encode_features(pixels)
    masks = tuple(torch.full((1, scale.tokens), free) for scale in schedule)
    source = SourceFeatures(features, pipeline.known_values)
    known = KnownTokens(masks, (None,) * len(masks), method, source)
    run = pipeline(MAKERS[name][1][0], seed=5, pruning=known, output_type="latent")
    plain = pipeline(MAKERS[name][1][0], seed=5, pruning=method, output_type="latent")
    return run.images, plain.images, features


@pytest.mark.parametrize("name", MASKED)
def test_with_nothing_known_an_edit_is_a_plain_run(name):
    run, plain, _ = known_run(name, free=True)
    assert torch.equal(run, plain)


@pytest.mark.parametrize("name", [name for name in MASKED if name != "hart"])
def test_with_everything_known_the_latent_is_the_encoders_own(name):
    run, _, features = known_run(name, free=False)
    pipeline = made(name)
    grids = [(scale.height, scale.width) for scale in pipeline.schedule()]
    quantizer = pipeline.vae if name == "infinity" else pipeline.vae.quantizer
    torch.testing.assert_close(run, quantizer.quantize(features, grids).latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MASKED)
def test_variations_keep_the_first_scales(name):
    weak, strong = (edit(name, box=None, strength=strength, output_type="latent") for strength in (0.2, 0.9))
    original = edit(name, output_type="latent").images
    distances = [float((each.images - original).square().mean()) for each in (weak, strong)]
    assert distances[0] < distances[1]
    assert weak.report.settings["edit"]["kept_scales"] == 5
    assert edit(name, box=None, strength=0.2).masks == [None]


@pytest.mark.parametrize("name", MASKED)
def test_a_new_border_is_drawn_around_the_picture(name):
    output = edit(name, box=None, outpaint=(8, 4, 0, 0))
    drawn, picture = np.asarray(output.images[0]), np.asarray(noise(name))
    assert drawn.shape == (side(name) + 4, side(name) + 8, 3)
    assert np.array_equal(drawn[4:, 8:], picture)
    assert not np.array_equal(drawn, np.asarray(output.before[0]))


def test_an_edit_takes_the_forms_of_a_call():
    image = noise("infinity")
    several = made("infinity").edit(
        "a red star", image=[image, image], box=[(0, 0, 9, 9), (9, 9, 30, 30)], seed=1
    )
    assert len(several.images) == 2 and several.report.settings["prompts"] == ["a red star"] * 2
    repeated = edit("infinity", num_images_per_prompt=2, negative_prompt="a blue ring", guidance_scale=3.0)
    assert len(repeated.images) == 2 and not np.array_equal(*map(np.asarray, repeated.images))
    assert edit("infinity", output_type="pt").images.shape == (1, 3, 64, 64)
    assert edit("infinity", output_type="np", composited=False).images.shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="The pictures differ in size"):
        edit("infinity", 2, image=[image, image.resize((70, 64))], output_type="np")
    images, *_ = edit("infinity", return_dict=False)
    assert images[0].size == (64, 64)
    large = image.resize((200, 150))
    assert edit("infinity", image=large).images[0].size == (200, 150)
    assert edit("infinity", image=large, composited=False).images[0].size == (64, 64)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"box": None}, "Nothing says what may change"),
        ({"box": None, "strength": 1.0}, "nothing of the picture would stay"),
        ({"strength": 0.0}, "above 0 and up to 1"),
        ({"image": None}, "No image was given"),
        ({"image": []}, "empty list"),
        ({"image": 7}, "give a PIL picture or the path of one"),
        ({"image": [noise("infinity")] * 3}, "1 prompts need one picture, or 1; got 3"),
        ({"feather": -1}, "a width in pixels, 0 or more"),
        ({"margin": -1}, "both are 0 or more"),
        ({"height": 65, "width": 65}, "No scale schedule draws 65x65 pixels"),
        ({"pruning": "bset"}, "Unknown pruning preset 'bset'"),
        ({"mask_image": 1}, "takes no mask_image: pass mask"),
        ({"box": [(0, 0, 8, 8), (0, 0, 8, 8)], "image": [noise("infinity")] * 3}, "3 pictures need one box"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(given, words):
    with pytest.raises(ValueError, match=words) as caught:
        edit("infinity", **given)
    assert "\n" not in str(caught.value)


def test_a_prompt_is_needed():
    for name, words in (("infinity", "No prompt was given"), ("var", "No class_labels was given")):
        with pytest.raises(ValueError, match=words):
            made(name).edit(image=noise(name), box=corner(name))
    with pytest.raises(ValueError, match="The prompt is empty"):
        made("infinity").edit(" ", image=noise("infinity"), box=corner("infinity"))


def test_models_that_cannot_edit_say_so(monkeypatch):
    with pytest.raises(ValueError, match="InfinityStarPipeline edits no pictures by a mask"):
        made("infinitystar").edit("a red star on sand", image=noise("infinity"), box=(0, 0, 8, 8))
    monkeypatch.setitem(made("infinity").vae._modules, "encoder", None)
    with pytest.raises(ValueError, match="has no encoder of pictures"):
        edit("infinity")
    with pytest.raises(ValueError, match="leave parts out"):
        edit("hart", parts=2)


@pytest.mark.parametrize("name", MASKED)
def test_pictures_may_be_computed_each_by_itself(name, monkeypatch):
    subjects, images = MAKERS[name][1], [noise(name, seed) for seed in range(2)]
    seen: list[int] = []
    decode = made(name).vae.decode
    monkeypatch.setattr(
        made(name).vae,
        "decode",
        lambda latent, **options: (seen.append(len(latent)), decode(latent, **options))[1],
    )
    given = {"box": corner(name), "margin": 1, "output_type": "np", "num_images_per_prompt": 2}
    batch = made(name).edit(subjects, image=images, seed=[3, 4, 5, 6], batch_invariant=True, **given)
    assert set(seen) == {1} and batch.report.seeds == [3, 4, 5, 6]
    for index in range(2):
        seeds = [3 + 2 * index, 4 + 2 * index]
        single = made(name).edit(
            subjects[index], image=images[index], seed=seeds, batch_invariant=True, **given
        )
        assert np.array_equal(batch.images[2 * index : 2 * index + 2], single.images)
    shared = {"image": images[0], "box": corner(name), made(name)._subject: subjects}
    alone = made(name).summary("region", batch_invariant=True, **shared)
    together = made(name).summary("region", **shared)
    assert (alone.flops, 2 * alone.cache_bytes) == (together.flops, together.cache_bytes)
