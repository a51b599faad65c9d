"""Pruning methods through every pipeline: they do what they promise, or refuse in one sentence."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from stepvar import ScaleKV, SkipVAR, StepVAR
from stepvar.pruning.scalekv import Budget, ScaleKVPruner
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline

MAKERS = {
    "infinity": (make_infinity_pipeline, ["a red star", "a blue ring"]),
    "var": (make_var_pipeline, [1, 2]),
    "hart": (make_hart_pipeline, ["a red star", "a blue ring"]),
    "switti": (make_switti_pipeline, ["a red star", "a blue ring"]),
    "causal switti": (lambda: make_switti_pipeline(causal=True), ["a red star", "a blue ring"]),
    "infinitystar": (make_star_pipeline, ["a red star on sand", "a blue ring on grass"]),
}
PICTURES = [name for name in MAKERS if name != "infinitystar"]


@cache
def made(name: str):
    """A tiny pipeline, made once; tests must leave it as it was."""
    return MAKERS[name][0]()


def draw(name: str, pruning=None, images: int = 1, **options):
    """Latents and report of the first subjects, over and over."""
    subjects = [MAKERS[name][1][number % 2] for number in range(images)]
    output = made(name)(subjects, **{"seed": 5, "pruning": pruning, "output_type": "latent", **options})
    return output.images, output.report


@pytest.fixture
def faded(monkeypatch):
    """Fades what a pipeline decodes to white, so that random pictures are as flat as one likes."""

    def fade(name: str, contrast: float) -> None:
        vae = made(name).vae
        decode = type(vae).decode
        monkeypatch.setattr(vae, "decode", lambda codes: contrast * decode(vae, codes) + 1.0 - contrast)

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
        subject = MAKERS[name][1][image % 2]
        output = made(name)(subject, seed=5 + image, pruning=method, output_type="latent")
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
REMEMBERING = ["infinity", "var", "hart", "causal switti"]


@pytest.mark.parametrize("method", LIMITED)
@pytest.mark.parametrize("name", REMEMBERING)
def test_scalekv_holds_what_the_summary_promises(name, method):
    limited, report = draw(name, method, images=2)
    told, dense = made(name).summary(method, images=2), made(name).summary(method.pruning, images=2)
    assert told.cache_bytes == report.cache_bytes < dense.cache_bytes
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
