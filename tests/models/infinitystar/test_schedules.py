"""Every forward step of every published mode, as the official code lists them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stepvar.generation.cache import Span
from stepvar.generation.plan import GenerationPlan
from stepvar.models.infinitystar.rotary import RotaryTables
from stepvar.models.infinitystar.schedules import PUBLISHED, PyramidSettings, published_templates
from stepvar.models.infinitystar.session import layer_windows
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.pruning.stepvar import StepVAR

GOLDEN = Path(__file__).parents[2] / "golden" / "infinitystar"
MODES = {
    "480p_5s": ("480p", 5),
    "480p_10s": ("480p", 10),
    "480p_image": ("480p", 0),
    "720p_5s": ("720p", 5),
    "720p_image": ("720p", 0),
}


def read(name: str) -> dict:
    return json.loads((GOLDEN / f"schedule_{name}.json").read_text())


def test_all_aspect_ratios():
    official = read("all_aspect_ratios")["templates"]
    assert {float(key): [tuple(grid) for grid in grids] for key, grids in official.items()} == {
        key: list(grids) for key, grids in published_templates().items()
    }


@pytest.mark.parametrize("name", MODES)
def test_every_step_of_a_published_mode(name):
    official, (resolution, seconds) = read(name), MODES[name]
    sizes = VideoSizes.published(resolution)
    template = sizes.nearest_template(official["requested_h_div_w"])
    assert template == official["h_div_w_template"]
    schedule = sizes.schedule(template, sizes.latents(seconds))
    assert sizes.pixels(schedule) == (official["height"], official["width"])
    assert sizes.frames(schedule) == official["pixel_frames"]
    assert schedule.latent_frames == official["latent_frames"]
    assert len(schedule) == official["total_steps"]
    assert schedule.tokens == official["total_tokens_with_repeats"]
    steps = iter(schedule)
    for entry in official["scales"]:
        repeated = [next(steps) for _ in range(entry["repetitions"])]
        for repetition, step in enumerate(repeated):
            assert step.grid == (entry["t"], entry["h"], entry["w"])
            assert (step.clip, step.repetition) == (entry["clip"], repetition)
            assert step.position == entry["rope_scale_position"][repetition]
            assert [step.first_frame, step.first_frame + step.frames] == entry["frames"]
            assert f"({step.bits} bits)" in entry["head"]
            assert (step.bits == 64) == (entry["quantizer"] == "detail")


@pytest.mark.parametrize("name", ["480p_10s", "720p_5s"])
def test_steps_see_the_official_number_of_keys(name):
    official, (resolution, seconds) = read(name), MODES[name]
    sizes = VideoSizes.published(resolution)
    schedule = sizes.schedule(official["h_div_w_template"], sizes.latents(seconds))
    [window] = layer_windows(schedule, GenerationPlan.dense(schedule, 1), [128])
    seen = window.seen()[1:]
    for entry in official["scales"]:
        for repetition in range(entry["repetitions"]):
            assert seen[entry["first_step"] + repetition] == entry["kv_tokens"]


def test_rotary_places_of_every_scale():
    official = read("480p_5s")
    tables = RotaryTables(128, (30, 53), torch.device("cpu"))
    for entry in official["scales"][10:15]:
        table = tables.grid(600, [3], (entry["h"], entry["w"]))[0].reshape(entry["h"], entry["w"], 4, 16)
        rows = torch.tensor(entry["h_index"]).float()[:, None] * tables.frequencies
        columns = torch.tensor(entry["w_index"]).float()[:, None] * tables.frequencies
        torch.testing.assert_close(table[:, 0, 2].real, rows.cos())
        torch.testing.assert_close(table[0, :, 3].imag, columns.sin())


def test_interactive_continuation():
    official = read("interact_480p")
    sizes = VideoSizes.published("interact")
    schedule = sizes.continuation(official["h_div_w_template"])
    assert len(schedule) == official["total_steps"]
    positions = [place for entry in official["scales"] for place in entry["rope_scale_position"]]
    assert [step.position for step in schedule] == positions
    assert {step.first_frame for step in schedule} == {0}
    [window] = layer_windows(schedule, GenerationPlan.dense(schedule, 1), [20, 1320, 4770])
    assert window.seen()[3:] == [20 + 1320 + 4770 + step.tokens for step in schedule]


@pytest.mark.parametrize("resolution", PUBLISHED)
def test_heads_and_code_books_agree_on_every_aspect_ratio(resolution):
    sizes = VideoSizes.published(resolution)
    for template in sizes.templates:
        assert len(sizes.schedule(template, 21)) == len(sizes.schedule(0.562, 21))


def test_of_known_clips_only_the_last_steps_run():
    sizes = VideoSizes.published("480p")
    schedule = sizes.schedule(0.562, 41)
    rest = schedule.without_known(2)
    assert len(rest) == 2 + 39
    assert [step.position for step in rest] == [schedule[place].position for place in (41, *range(80, 120))]
    assert [step.given for step in rest] == [True, True] + [False] * 39


def test_the_next_clip_sees_the_last_step_that_ran():
    schedule = VideoSizes.published("480p").schedule(0.562, 41)
    plan = StepVAR(skip=(-40,), ratios={-41: 0.5}, first_layer=1).plan(schedule, 2)
    dense_layer, narrow_layer = layer_windows(schedule, plan, [10])
    kept = [span for span in dense_layer.spans if span.kept]
    assert [(span.step, span.tokens, span.last_step) for span in kept] == [
        (-1, 10, 120),
        (41, 1590, 80),
        (79, 20640, 119),
    ]
    assert Span(79, 10320, 119) in narrow_layer.spans


@pytest.mark.parametrize(("resolution", "seconds"), [("480p", 11), ("720p", 6), ("480p", 2.5), ("480p", -1)])
def test_lengths_that_no_schedule_has(resolution, seconds):
    with pytest.raises(ValueError, match=r"No scale schedule draws .* seconds: take whole seconds from 1 to"):
        VideoSizes.published(resolution).latents(seconds)


def test_sizes_that_no_schedule_has():
    with pytest.raises(ValueError, match="the nearest are 848x480"):
        VideoSizes.published("480p").template_at_size(480, 850)


def test_contradicting_settings_are_refused():
    sizes = VideoSizes.published("480p")
    with pytest.raises(ValueError, match="disagree"):
        sizes.settings.bits(11, 100)


def test_the_interactive_clip_takes_the_repetitions_of_a_first_clip():
    settings = PyramidSettings(1, None, (3, 1), (1, 2), clip_frames=4)
    schedule = settings.build_continuation([(1, 1), (2, 2)], 4)
    assert [(step.height, step.repetition) for step in schedule] == [(1, 0), (1, 1), (1, 2), (2, 0)]


def test_frames_are_counted_in_whole_clips():
    settings = PyramidSettings(None, 4, (1,), (1,), clip_frames=5)
    schedule = settings.build_clips([[(2, 2)]] * 4, [1, 2, 5, 3])
    assert [step.first_frame for step in schedule] == [0, 1, 6, 11]


@pytest.mark.parametrize(("semantic", "minimum"), [(1, None), (None, 2)])
def test_place_or_cells_alone_tell_the_code_book(semantic, minimum):
    settings = PyramidSettings(semantic, minimum, (1, 1, 1), (1, 1, 1))
    schedule = settings.build([(1, 1), (1, 2), (1, 3)], 1)
    assert [step.bits for step in schedule] == [16, 64, 64]
