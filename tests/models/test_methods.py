"""Pruning methods through every pipeline: they do what they promise, or refuse in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar import FastVAR, ScaleKV, SkipVAR, StepVAR
from stepvar.generation.guidance import Guidance
from stepvar.models.presets import PRESETS
from stepvar.pruning.presets import METHODS, with_scales
from stepvar.pruning.scalekv import Budget, ScaleKVPruner
from tiny_pipelines import MAKERS, PICTURES, made, needed


def draw(name: str, pruning=None, images: int = 1, **options):
    """Latents and report of the first subjects, over and over."""
    subjects = [MAKERS[name][1][number % 2] for number in range(images)]
    options = {"seed": 5, "pruning": pruning, "output_type": "latent", **options}
    output = made(name)(subjects, **needed(made(name), still=False), **options)
    return output.frames if made(name).draws_videos else output.images, output.report


@pytest.fixture
def faded(monkeypatch):
    """Fades what a pipeline decodes to white, so that random pictures are as flat as one likes."""

    def fade(name: str, contrast: float) -> None:
        vae = made(name).vae
        decode = type(vae).decode_pixels
        monkeypatch.setattr(
            vae, "decode_pixels", lambda codes: contrast * decode(vae, codes) + 1.0 - contrast
        )

    return fade


@pytest.mark.parametrize("name", PICTURES)
def test_skipvar_ends_flat_pictures_and_drops_guidance_of_busy_ones(name, faded):
    busy, report = draw(name, SkipVAR(0.84))
    assert not any(scale.plan.skipped for scale in report.scales)
    assert [scale.rows for scale in report.scales][-3:] == [2, 2, 1]
    assert torch.equal(busy, draw(name, SkipVAR(0.84))[0])
    assert torch.equal(busy, draw(name, StepVAR(unguided=-1))[0])
    assert not torch.equal(busy, draw(name)[0])
    faded(name, 0.01)
    flat, report = draw(name, SkipVAR(0.84))
    assert [scale.plan.skipped for scale in report.scales] == [False] * 3 + [True] * 3
    assert torch.equal(flat, draw(name, StepVAR(skip=(-3, -2, -1)))[0])


@pytest.mark.parametrize(
    ("name", "contrast", "target"),
    # At full contrast one picture of HART's keeps guidance in the last scale, and its diffusion head too.
    [*((name, 0.4, 0.84) for name in PICTURES), ("hart", 1.0, 0.88)],
)
def test_skipvar_judges_the_pictures_of_a_batch_apart(name, contrast, target, faded):
    faded(name, contrast)
    method = SkipVAR(target)
    batch, together = draw(name, method, images=6)
    endings = set()
    for image in range(6):
        inputs = MAKERS[name][1][image % 2]
        own = needed(made(name))
        output = made(name)(inputs, seed=5 + image, pruning=method, output_type="latent", **own)
        # Cold mixtures of codes and guided residuals amplify the rounding of another batch size.
        torch.testing.assert_close(batch[image], output.images[0], rtol=0, atol=2e-2)
        endings.add(tuple(scale.rows for scale in output.report.scales))
    assert len(endings) > 1, "the pictures differ in what they need"
    most = [6 * max(column) for column in zip(*endings, strict=True)]
    assert [scale.rows for scale in together.scales] == most


def test_skipvar_does_not_leave_out_a_part_of_a_map():
    with pytest.raises(ValueError, match="drawn in parts here: draw it at once"):
        draw("hart", SkipVAR(), parts=2)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "InfinityStarPipeline draws no previews"), (1, "a clip has several")]
)
def test_skipvar_refuses_videos_before_anything_runs(seconds, words):
    for ask in (made("infinitystar").summary, lambda pruning, **size: draw("infinitystar", pruning, **size)):
        with pytest.raises(ValueError, match=words):
            ask(SkipVAR(), seconds=seconds)


PRUNED = StepVAR(ratios={-2: 0.4, -1: 0.6})
LIMITED = [
    ScaleKV(share=0.15),
    ScaleKV(share=0.15, drafters=(), pruning=PRUNED),
    ScaleKV({-2: Budget(16, 20, (1,)), -1: Budget(18, 30, (1,))}, capacity=10),
]
REMEMBERING = ["infinity", "var", "hart", "causal switti", "varedit"]


@pytest.mark.parametrize("method", LIMITED)
@pytest.mark.parametrize("name", REMEMBERING)
def test_scalekv_holds_what_the_summary_promises(name, method):
    limited, report = draw(name, method, images=2)
    told, dense = made(name).summary(method, images=2), made(name).summary(method.pruning, images=2)
    assert told.cache_bytes == report.cache_bytes
    # A source is never forgotten, and in two layers the room that they share holds more than one forgets.
    assert told.cache_bytes < dense.cache_bytes or name == "varedit"
    assert told.flops < dense.flops
    assert [scale.plan.kept for scale in report.scales] == [entry.kept for entry in told.plan.scales]
    assert torch.equal(limited, draw(name, method, images=2)[0])
    assert not torch.equal(limited, draw(name, method.pruning, images=2)[0])


@pytest.mark.parametrize("name", ["switti", "infinitystar"])
def test_scalekv_refuses_models_that_keep_nothing_it_could_cut(name):
    for ask in (made(name).summary, lambda pruning: draw(name, pruning)):
        with pytest.raises(ValueError, match="Pipeline keeps none of this kind: use a method that prunes"):
            ask(ScaleKV(share=0.06))


def test_scalekv_never_forgets_a_prompt_in_the_sequence():
    """HART's context tokens come first, and stay where they are however little is remembered."""
    pipeline, seen = made("hart"), []
    context = pipeline.transformer.config.context_tokens - 1

    def hear(report):
        layer = caches[0][1]
        seen.append((layer.length, layer.buffers.keys[:, :, :context].clone()))

    caches = []
    attach = ScaleKVPruner.attach

    def watched(self, cache):
        caches.append(attach(self, cache))
        return caches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScaleKVPruner, "attach", watched)
        draw("hart", ScaleKV(share=0.13, drafters=()), observer=hear)
    lengths = [length for length, _ in seen]
    assert lengths == [context + held for held in (1, 5, 14, 17, 17)] + [0]
    assert all(torch.equal(keys, seen[0][1]) for _, keys in seen)


EVERYWHERE = {
    **{name: with_scales(name, {-2: 0.4, -1: 0.6}) for name in METHODS},
    "skipping": StepVAR(skip=(-1,)),
    "fastvar in all layers": FastVAR(ratios={-1: 0.5}, first_layer=0, dense_end=0),
    "pruned and unguided": StepVAR(ratios={-1: 0.5}, unguided=-2),
    "cached features": StepVAR(ratios={-2: 0.4, -1: 0.6}, recovery="cache"),
    "copied values": StepVAR(ratios={-2: 0.4, -1: 0.6}, values="copied"),
}
HERE = [
    *((name, label) for name in MAKERS for label in EVERYWHERE),
    *((name, label) for name in PICTURES for label in PRESETS[MAKERS[name][2]]),
]


@pytest.mark.parametrize(("name", "label"), HERE)
def test_what_is_promised_is_what_runs_and_runs_again(name, label):
    """On videos too, which are drawn one after the other."""
    method = EVERYWHERE.get(label, label)
    drawn, report = draw(name, method, images=2)
    told = made(name).summary(method, images=2)
    for entry, cost, ran in zip(told.plan.scales, told.costs, report.scales, strict=True):
        assert ran.plan.kept <= entry.kept
        if not told.plan.decides:
            assert (entry.kept, entry.skipped, cost.rows) == (ran.plan.kept, ran.plan.skipped, ran.rows)
    assert told.flops < told.dense_flops or told.plan.decides or told.plan.int8_cache
    assert torch.equal(drawn, draw(name, method, images=2)[0])
    # Bits and indices of tiny models may survive rounded keys and values.
    assert told.plan.int8_cache or not torch.equal(drawn, draw(name, images=2)[0]), "never a silent no-op"


@pytest.mark.parametrize("name", [name for name in PICTURES if "switti" not in name])
def test_presets_save_what_they_are_named_for(name):
    pipeline = made(name)
    dense = pipeline.summary()
    unguided, most, limited = (pipeline.summary(preset) for preset in ("unguided", "skipvar", "scalekv"))
    assert [cost.rows for cost in unguided.costs] == [2, 2, 2, 2, 1, 1]
    assert unguided.tokens == most.tokens == limited.tokens == dense.tokens
    before = dense.prefix.flops if dense.prefix else 0
    assert unguided.flops - before < 0.7 * (dense.flops - before)
    assert most.plan.decides and most.flops == dense.flops
    assert limited.cache_bytes < dense.cache_bytes or name == "varedit"


@pytest.mark.parametrize("remaining", ["conditional", "unconditional"])
@pytest.mark.parametrize("name", MAKERS)
def test_rows_that_are_left_out_change_nothing_in_those_that_remain(name, remaining, monkeypatch):
    """The copies never meet inside a transformer: all of them computed give the same picture."""
    method = FastVAR(ratios={-1: 0.4}, unguided=-2, remaining=remaining)
    fewer, report = draw(name, method, images=2)
    alone = report.scales[-1].rows
    other = "conditional" if remaining == "unconditional" else "unconditional"
    assert not torch.equal(fewer, draw(name, replace(method, remaining=other), images=2)[0])
    monkeypatch.setattr(Guidance, "rows", lambda self, scale, images, copies: slice(0, images * copies))
    every, report = draw(name, method, images=2)
    assert report.scales[-1].rows == 2 * alone
    torch.testing.assert_close(fewer, every, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_guidance_that_is_off_cannot_be_dropped(name):
    off = {"guidance_scale": 1.0}
    for ask in (made(name).summary, lambda pruning, **options: draw(name, pruning, **options)):
        with pytest.raises(ValueError, match="no scale that runs is guided there"):
            ask(StepVAR(unguided=-2), **off)
    if "switti" in name:
        with pytest.raises(ValueError, match="dropped from scale 6x6 on, but no scale that runs is guided"):
            draw(name, "unguided", guidance_stop=4)


def test_a_preset_of_other_models_is_no_preset_here():
    with pytest.raises(ValueError, match=r"Unknown pruning preset 'scalekv'; known are none, .* skipvar\."):
        draw("switti", "scalekv")
