"""Planned cost against the official tables, and what the presets save on the published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from living_tensors import Living
from stepvar import InfinityStarPipeline
from stepvar.evaluation.speed import usual_methods
from stepvar.generation.loop import plan_generation
from stepvar.models.infinitystar.costs import memory_plan, scale_costs
from stepvar.models.infinitystar.presets import PRESETS
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import InfinityStarVAE
from tiny_star import make_star_pipeline

GOLDEN = Path(__file__).parents[2] / "golden" / "infinitystar"
TEXT = [128]

DECODER_TFLOPS = {"480p": 145, "720p": 328}
"""Convolutions of the tokenizer's decoder over 81 frames, counted by hand from its layers."""


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return InfinityStarTransformer.published(depth=36).to(torch.bfloat16)


def schedule_of(resolution: str, seconds: int):
    sizes = VideoSizes.published(resolution)
    return sizes.schedule(0.562, sizes.latents(seconds))


def tera(model, schedule, pruning=None) -> list[float]:
    plan = plan_generation(pruning, schedule, 36)
    return [cost.flops / 1e12 for cost in scale_costs(model, schedule, plan, [2] * len(schedule), TEXT)]


@pytest.mark.parametrize(
    ("name", "resolution", "seconds"),
    [("480p_5s", "480p", 5), ("480p_10s", "480p", 10), ("720p_5s", "720p", 5), ("480p_image", "480p", 0)],
)
def test_the_official_tables(model, name, resolution, seconds):
    official = json.loads((GOLDEN / f"schedule_{name}.json").read_text())
    costs = tera(model, schedule_of(resolution, seconds))
    # The tables leave out the heads, 4e-5 of everything, and we the text's own pass.
    assert sum(costs) == pytest.approx(official["total_tflops"], rel=1e-3)
    last = official["scales"][-1]
    expected = (last["linear_tflops"] + last["attention_tflops"]) / last["repetitions"]
    assert costs[-1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("preset", "resolution", "seconds", "speedup"),
    [
        ("paper", "480p", 5, 1.4),
        ("prune", "480p", 5, 2.0),
        ("720p-1.4x", "720p", 5, 1.4),
        ("720p-2x", "720p", 5, 2.0),
        ("10s-1.4x", "480p", 10, 1.4),
    ],
)
def test_presets_reach_what_they_promise_decoding_included(model, preset, resolution, seconds, speedup):
    schedule = schedule_of(resolution, seconds)
    decoding = DECODER_TFLOPS[resolution] * seconds / 5
    dense = sum(tera(model, schedule)) + decoding
    pruned = sum(tera(model, schedule, PRESETS[preset].method)) + decoding
    assert speedup <= dense / pruned < speedup + 0.15


def published_pipeline(resolution: str) -> InfinityStarPipeline:
    """A pipeline of the published sizes, of two layers and without numbers."""
    with torch.device("meta"):
        return InfinityStarPipeline(InfinityStarTransformer.published(resolution, depth=2), InfinityStarVAE())


@pytest.mark.parametrize(
    ("resolution", "length"),
    [("480p", {}), ("480p", {"seconds": 0}), ("480p", {"seconds": 10, "known_seconds": 5}), ("720p", {})],
)
def test_a_plan_for_ten_seconds_is_refused_where_its_clips_are_not_drawn(resolution, length):
    pipeline = published_pipeline(resolution)
    with pytest.raises(ValueError, match=r"'10s-1.4x' prunes the 2 clips of 10 seconds, but [01] would run"):
        pipeline.summary("10s-1.4x", **length)
    assert pipeline.summary("paper", **length).flops


@pytest.mark.parametrize(
    ("preset", "resolution", "saving"), [("fastervar", "480p", 2.03), ("720p-fastervar", "720p", 2.57)]
)
def test_what_fastervar_saves_on_videos(preset, resolution, saving):
    """Without its own projections, below 1 %: fewer copies, and a tenth of the last step."""
    told = published_pipeline(resolution).summary(preset)
    assert told.dense_flops / told.flops == pytest.approx(saving, abs=0.006)
    assert {cost.rows for cost in told.costs[told.plan.unguided :]} == {1}


def test_a_plan_for_ten_seconds_prunes_both_clips():
    for more in ({}, {"known_seconds": 0}):
        told = published_pipeline("480p").summary("10s-1.4x", seconds=10, **more)
        assert [entry.scale.clip for entry in told.plan.scales if entry.prunes] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        ("480p", ["dense", "skip", "prune", "paper"]),
        ("720p", ["dense", "skip", "720p-1.4x", "720p-2x", "720p-fastervar"]),
    ],
)
def test_what_is_measured_is_called_what_it_is(resolution, expected):
    methods = usual_methods(published_pipeline(resolution))
    assert list(methods) == expected
    assert all(preset == (None if name == "dense" else name) for name, preset in methods.items())


@pytest.mark.parametrize(("chunk", "tile"), [(2, None), (1, None), (3, None), (2, 4), (1, 3)])
@pytest.mark.parametrize(("seconds", "pace"), [(0, 4), (1, 3), (2, 4)])
def test_the_decoder_holds_what_is_planned(chunk, tile, seconds, pace):
    pipeline = make_star_pipeline(clip_frames=pace, latents_per_second=pace)
    with torch.device("meta"):
        # The published one with narrower levels; the coarse positions still have their 16 channels.
        tokenizer = InfinityStarVAE(channels=(24, 48, 96, 96, 96), with_encoder=False)
    pipeline.vae = tokenizer
    latent = torch.empty(1, 64, 1 + seconds * pace, 3, 5, device="meta")
    with torch.no_grad(), Living() as living:
        stream = (
            tokenizer.decode_stream(latent, chunk)
            if tile is None
            else tokenizer.decode_tiled(latent, tile, tile // 4, chunk)
        )
        for _chunk in stream:
            pass
    told = pipeline.summary(seconds=seconds, decode_chunk=chunk, decode_tile=tile)
    planned = told.memory.working["vae"]
    assert living.peak <= planned <= 1.4 * living.peak


def test_tiles_bound_the_memory_of_a_video():
    pipeline = published_pipeline("720p")
    tiles = (None, 24, 16)
    whole, large, small = (pipeline.summary(decode_tile=tile).memory.working["vae"] for tile in tiles)
    assert small < large < 0.55 * whole
    assert pipeline.summary(decode_tile=200).memory.working["vae"] == whole
    with pytest.raises(ValueError, match="decode_tile 2 cells or more"):
        pipeline.summary(decode_tile=1)


def test_what_the_8b_model_needs(model):
    with torch.device("meta"):
        tokenizer = InfinityStarVAE()
    schedule = schedule_of("480p", 5)
    plan = plan_generation(None, schedule, 36)
    memory = memory_plan(model, tokenizer, None, schedule, plan, 2, TEXT)
    token = 2 * 2 * 8 * 128 * 2
    assert memory.cache == token * (36 * (128 + 1590) + 128 + 1590 + 31800)
    assert memory.weights["transformer"] == 2 * 8_768_378_016
    assert memory.offloaded < 24e9
    assert memory.streamed < memory.offloaded < memory.resident
