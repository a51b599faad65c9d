"""VAREdit's pipeline: pictures of any size, sizes it was trained for, what runs and what that costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from living_tensors import Living
from stepvar import ScaleKV, StepVAR, VAREditPipeline
from stepvar.generation.cascade import Cascade
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.models.varedit.costs import memory_plan
from stepvar.models.varedit.published import check_schedule
from stepvar.models.varedit.source_cache import ScaleAlignedCache
from stepvar.pruning.scalekv import BudgetedLayer, _Step
from tiny_pipeline import PIXELS, make_parts
from tiny_varedit import SOURCE, make_source, make_varedit_pipeline

PROMPT = "a red star"
WIDE, TALL = make_source(90, 37, 1), make_source(30, 70, 2)


@pytest.fixture(scope="module")
def pipeline():
    return make_varedit_pipeline()


def latents(pipeline, *args, **options):
    return pipeline(*args, **{"seed": 3, "output_type": "latent", **options}).images


def test_pictures_come_back_at_their_own_size(pipeline):
    output = pipeline([PROMPT, "a blue ring"], image=[WIDE, TALL], num_images_per_prompt=2, seed=3)
    assert [picture.size for picture in output.images] == [WIDE.size] * 2 + [TALL.size] * 2
    assert output.report.settings["source_sizes"] == [[90, 37], [30, 70]]
    cropped = pipeline(PROMPT, image=WIDE, fit="crop", seed=3)
    assert cropped.images[0].size == (37, 37)
    canvas = pipeline(PROMPT, image=WIDE, seed=3, output_type="np").images
    assert canvas.shape == (1, PIXELS, PIXELS, 3)


def test_a_picture_is_edited_alone_or_in_a_batch(pipeline):
    together = latents(pipeline, [PROMPT, "a blue ring"], image=[WIDE, TALL], seed=[3, 4])
    assert torch.equal(together[:1], latents(pipeline, PROMPT, image=WIDE))
    assert torch.equal(together[1:], latents(pipeline, "a blue ring", image=TALL, seed=4))
    one = latents(pipeline, [PROMPT, "a blue ring"], image=WIDE, seed=[3, 4])
    assert torch.equal(one[:1], together[:1]) and not torch.equal(one[1:], together[1:])


def test_a_batch_may_be_computed_picture_by_picture(pipeline):
    """In bfloat16 too, each with its own picture to edit."""
    half = make_varedit_pipeline().to(torch.bfloat16)
    batch = {"image": [WIDE, TALL], "seed": [3, 3, 4, 4], "num_images_per_prompt": 2, "batch_invariant": True}
    together = half([PROMPT, "a blue ring"], **batch)
    alone = half("a blue ring", image=TALL, seed=4)
    assert [picture.size for picture in together.images] == [WIDE.size] * 2 + [TALL.size] * 2
    assert np.array_equal(np.asarray(together.images[3]), np.asarray(alone.images[0]))


def test_the_picture_and_the_instruction_matter(pipeline):
    first = latents(pipeline, PROMPT, image=SOURCE)
    assert not torch.equal(first, latents(pipeline, PROMPT, image=make_source(seed=5)))
    assert not torch.equal(first, latents(pipeline, "a blue ring", image=SOURCE))


@pytest.mark.parametrize("kind", ["file", "alpha", "turned", "deep"])
def test_pictures_are_read_upright_in_srgb_and_eight_bits(pipeline, tmp_path, kind):
    picture, expected = WIDE, WIDE
    if kind == "file":
        WIDE.save(tmp_path / "a.png")
        picture = tmp_path / "a.png"
    elif kind == "alpha":
        picture = Image.new("RGBA", WIDE.size, (9, 9, 9, 0))
        expected = Image.new("RGB", WIDE.size, (255, 255, 255))
    elif kind == "turned":
        exif = Image.Exif()
        exif[274] = 6
        WIDE.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
        picture = tmp_path / "a.png"
    else:
        grey = np.asarray(WIDE.convert("L"))
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
        expected = Image.fromarray(grey).convert("RGB")
    drawn = latents(pipeline, PROMPT, image=picture)
    assert torch.equal(drawn, latents(pipeline, PROMPT, image=expected))


def test_one_sentence_for_pictures_that_cannot_be(pipeline):
    for options, words in (
        ({}, r"VAREdit edits a picture: give one by image= \(--image FILE\)"),
        ({"image": [SOURCE] * 2}, "1 prompts need one image, or 1; got 2"),
        ({"image": []}, "1 prompts need one image, or 1; got 0"),
        ({"image": np.zeros((8, 8, 3))}, "image is a ndarray; give a PIL picture"),
        ({"image": SOURCE, "fit": "stretch"}, "fit is 'stretch'; known are pad, crop"),
        ({"image": Image.new("RGB", (20000, 201))}, "padded to the model's shape, is 20000x20000 pixels"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline(PROMPT, **options, observer=lambda report: pytest.fail("a scale ran"))


def test_edit_takes_an_instruction(pipeline):
    """Without a mask it is the call; with one, only what the mask covers is taken over."""
    called = pipeline([PROMPT] * 2, image=[WIDE, TALL], seed=3).images
    plain = pipeline.edit(PROMPT, image=[WIDE, TALL], seed=3)
    assert all(np.array_equal(*map(np.asarray, pair)) for pair in zip(plain.images, called, strict=True))
    assert plain.masks == [None, None] and plain.before[0].size == WIDE.size
    box = (0.5, 0.0, 0.5, 1.0)
    masked = pipeline.edit(PROMPT, image=WIDE, box=box, seed=3, feather=0)
    before, after, drawn = map(np.asarray, (WIDE, masked.images[0], called[0]))
    assert np.array_equal(after[:, :45], before[:, :45]) and np.array_equal(after[:, 45:], drawn[:, 45:])
    assert masked.report.settings["edit"] == {"feather": 0, "composited": True}
    raw = pipeline.edit(PROMPT, image=WIDE, box=box, seed=3, composited=False)
    assert np.array_equal(np.asarray(raw.images[0]), drawn)
    array = pipeline.edit(PROMPT, image=WIDE, box=box, seed=3, feather=0, output_type="np").images
    assert np.allclose(array[0] * 255, after)
    middle = pipeline.edit(PROMPT, image=WIDE, box=(0.4, 0.0, 0.2, 1.0), seed=3, fit="crop").images[0]
    assert middle.size == WIDE.size and not np.array_equal(np.asarray(middle), before)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"strength": 0.5}, "strength means nothing to VAREditPipeline"),
        ({"outpaint": (8, 0, 0, 0)}, "outpaint means nothing to VAREditPipeline"),
        ({"margin": 1}, "margin means nothing to VAREditPipeline"),
        ({"pruning": "region"}, "Unknown pruning preset 'region'"),
        ({"box": (0, 0, 8, 8), "fit": "crop"}, "The mask lies outside of what the model sees"),
        ({"box": (0, 0, 90, 37)}, "covers the whole picture"),
        ({"image": None}, "No image was given"),
        ({"mask_image": WIDE}, "takes no mask_image"),
        ({"image": [WIDE, TALL], "output_type": "pt", "box": (0, 0, 8, 8)}, "differ in size"),
    ],
)
def test_what_is_nothing_to_an_instruction_is_refused(pipeline, given, words):
    with pytest.raises(ValueError, match=words):
        pipeline.edit(PROMPT, **{"image": WIDE, **given})


def test_pictures_of_one_instruction_share_its_source_pass(pipeline):
    """It runs for one row, and the pictures are those that single calls draw."""
    prompts = [PROMPT, "a blue ring"]
    counts: list[int] = []
    watch = pipeline.transformer.blocks[0].feed_forward.register_forward_hook(
        lambda module, inputs, output: counts.append(len(output))
    )
    several = latents(pipeline, prompts, image=[WIDE, TALL], num_images_per_prompt=3, seed=[1, 2, 3, 4, 5, 6])
    watch.remove()
    assert counts[:2] == [4, 12]
    alone = latents(pipeline, "a blue ring", image=TALL, seed=5)
    assert torch.equal(several[4:5], alone)
    rounded = latents(
        pipeline, PROMPT, image=WIDE, num_images_per_prompt=2, seed=[1, 2], pruning="int8-cache"
    )
    single = latents(pipeline, PROMPT, image=WIDE, seed=2, pruning="int8-cache")
    assert torch.equal(rounded[1:], single)
    one, three = pipeline.summary(), pipeline.summary(num_images_per_prompt=3, images=3)
    assert three.prefix.flops == one.prefix.flops and three.prefix.cache_bytes == 3 * one.prefix.cache_bytes


def test_only_sizes_with_the_positions_of_training_are_drawn(caplog):
    table = SizeTable.published()
    check_schedule(table.schedule(1.0, "0.25M"), table, ["0.25M"])
    assert not caplog.records
    with pytest.raises(ValueError, match="These weights edit 512x512 pixels, and at 1024x1024 their tokens"):
        check_schedule(table.schedule(1.0, "1M"), table, ["0.25M"])
    check_schedule(table.schedule(2.0, "0.25M"), table, ["0.25M"])
    assert "saw square pictures only" in caplog.text


PRUNED = StepVAR(ratios={-2: 0.5, -1: 0.75})


@pytest.mark.parametrize(
    ("pruning", "guidance"),
    [(None, 1.0), (None, 3.0), (PRUNED, 3.0), (StepVAR(skip=(-1,)), 1.0), (StepVAR(unguided=-2), 3.0)],
)
def test_planned_costs_are_what_runs(pipeline, pruning, guidance):
    settings = {"guidance_scale": guidance, "pruning": pruning}
    text = pipeline.encode([PROMPT])
    told = pipeline.summary(**settings, text_tokens=len(text[0]))
    request = pipeline.check(PROMPT, image=SOURCE, prompt_embeds=None, seed=3, **settings)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        sampler, session = pipeline.sampler(request), pipeline.prefill(request)
        with FlopCounterMode(display=False) as counter:
            result = pipeline.run_scales(session, sampler, request)
    assert told.cache_bytes == result.cache_bytes
    assert told.flops == pytest.approx(counter.get_total_flops(), rel=0.03)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        session = pipeline.prefill(request)
        cache = session.allocate_cache(told.plan)
        with FlopCounterMode(display=False) as counter:
            session.prefill(cache)
    assert told.prefix.flops == counter.get_total_flops()


def test_features_do_not_depend_on_the_number_format(pipeline):
    half = make_varedit_pipeline().to(torch.bfloat16)
    with torch.no_grad():
        exact, found = (pipe.encode_pictures([SOURCE], SOURCE.size) for pipe in (pipeline, half))
    assert torch.equal(exact, found)
    assert half.vae.decoder.conv_in.conv.weight.dtype == torch.bfloat16
    assert half(PROMPT, image=SOURCE, seed=3).images[0].size == SOURCE.size


def test_a_cascade_shows_the_picture_to_both_models(pipeline):
    drafter = VAREditPipeline(**{**make_parts(7), "vae": pipeline.vae})
    drafter.set_progress_bar_config(disable=True)
    cascade = Cascade(drafter, 4)
    drawn = latents(pipeline, PROMPT, image=SOURCE, cascade=cascade)
    assert not torch.equal(drawn, latents(pipeline, PROMPT, image=make_source(seed=5), cascade=cascade))
    told, alone = pipeline.summary(cascade=cascade), pipeline.summary()
    assert told.prefix.flops == 2 * alone.prefix.flops
    assert told.dense_prefix == alone.prefix


def test_scalekv_in_the_first_layer_sees_what_the_layer_shows():
    """The averages of the source and what is remembered; never the room before them."""
    rows, heads, channels = 1, 2, 8
    layer = ScaleAlignedCache(*torch.full((2, rows, heads, 4 + 5, channels), 1e6), (2, 2))
    source, first, target = (
        torch.randn(rows, heads, n, channels, generator=torch.Generator().manual_seed(n)) for n in (4, 1, 4)
    )
    layer.attend(source, source, source, 1.0)
    workspace = torch.empty(2, rows, heads, 4 + 5, channels)
    limited = BudgetedLayer(layer, workspace, [_Step(None, ()), _Step(2, (0, 3))], extra=4)
    layer.begin_scale((1, 1))
    limited.attend(first, first, first, 1.0)
    layer.begin_scale((2, 2))
    drawn = limited.attend(target, target, target, 1.0)
    seen = torch.cat([source, first, target], dim=2)
    expected = torch.nn.functional.scaled_dot_product_attention(target, seen, seen, scale=1.0)
    torch.testing.assert_close(drawn, expected)
    layer.begin_scale((1, 1))
    # Of five target tokens two are remembered, behind the average of the source.
    assert layer.length == 4 + 2
    mean = source.mean(dim=2, keepdim=True)
    keys, values = (torch.cat([mean, kept[:, :, 4:6], first], dim=2) for kept in (layer.keys, layer.values))
    expected = torch.nn.functional.scaled_dot_product_attention(first, keys, values, scale=1.0)
    torch.testing.assert_close(layer.attend(first, first, first, 1.0), expected)


def test_scalekv_leaves_the_source_alone(pipeline):
    method = ScaleKV(share=0.15, drafters=())
    assert not torch.equal(
        latents(pipeline, PROMPT, image=SOURCE, pruning=method), latents(pipeline, PROMPT, image=SOURCE)
    )
    told = pipeline.summary(method)
    assert told.prefix == pipeline.summary().prefix


@pytest.mark.parametrize("tiling", [False, True])
def test_memory_is_what_the_parts_hold(pipeline, tiling):
    """Weights and cache exactly; the tokenizer's tensors, followed one by one without content, nearly."""
    told = pipeline.summary(PRUNED, guidance_scale=3.0)
    weights = sum(
        value.numel() * value.element_size() for value in pipeline.transformer.state_dict().values()
    )
    assert told.memory.weights["transformer"] == weights and told.memory.cache == told.cache_bytes
    assert "Peak memory" in str(told) and told.memory.resident > weights + told.cache_bytes
    with torch.device("meta"):
        # The published one, narrower.
        vae = InfinityVAE(16, 32, norm_groups=8, patchify=False)
    vae.use_tiling = tiling
    latent = torch.empty(1, 16, 64, 64, dtype=torch.float32, device="meta")
    with torch.no_grad(), Living() as living:
        vae.decode_part(latent)
    planned = memory_plan({"transformer": pipeline.transformer, "vae": vae}, told, (1024, 1024), 1)
    assert 0.9 * living.peak <= planned.working["vae"] <= 1.5 * living.peak
