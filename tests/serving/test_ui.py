"""The page without a browser and without gradio: what its functions show of a tiny model."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from stepvar.pruning.presets import ChangedPreset
from tiny_pipeline import SIDES, make_pipeline

pytest.importorskip("fastapi")

PROMPT = "a red circle on grass"
FORM = {
    "prompt": PROMPT,
    "plan": "best",
    "dense": True,
    "seed": "5",
    "size": "auto",
    "negative": "",
    "guidance": "",
    "seconds": None,
    "rounds": "",
}


class Desk:
    """A flow with its queue running, and a way to collect what it shows."""

    def __init__(self, pipeline) -> None:
        from stepvar.serving.drawing import Drawer
        from stepvar.serving.server import Server
        from stepvar.serving.settings import ServerSettings
        from stepvar.serving.ui.flow import Flow, Visit
        from stepvar.serving.ui.plans import LatePlans

        self.pipeline = pipeline
        self.server = Server(Drawer(pipeline), "tiny", ServerSettings(batch_wait=0.0))
        self.server.engine.start()
        self.plans = LatePlans.of(pipeline)
        self.flow = Flow(self.server, self.plans)
        self.visit = Visit()

    def draw(self, shares=None, **changes):
        form = {**FORM, **changes}
        known = form["plan"] in [*self.plans.presets, "sliders"]
        own = (self.plans.shares(form["plan"]) if known else None) or [0.0] * len(self.plans.names)
        shares = shares or [100 * share for share in own]
        return self.collect(self.flow.draw(form, shares, self.visit))

    def redraw(self, plan, shares):
        return self.collect(self.flow.redraw(plan, shares, self.visit))

    def collect(self, views):
        async def run():
            return [view async for view in views]

        found = asyncio.run(run())
        self.visit = next((view["visit"] for view in reversed(found) if "visit" in view), self.visit)
        return found

    def picture(self, html: str) -> Image.Image:
        name = re.search(r"v1/files/([^\"]+)", html)[1]
        return Image.open(io.BytesIO(self.server.store.get(name)[1]))


@pytest.fixture(scope="module")
def desk():
    made = Desk(make_pipeline())
    yield made
    made.server.engine.stop()


def last(views, part):
    return [view[part] for view in views if part in view][-1]


def test_dense_and_accelerated_grow_and_are_what_the_pipeline_draws(desk):
    views = desk.draw()
    for part, pruning in (("dense", None), ("pruned", "best")):
        expected = desk.pipeline(PROMPT, seed=5, pruning=pruning).images[0]
        picture = desk.picture(last(views, part))
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
        settings = json.loads(picture.text["stepvar"])
        assert settings["prompt"] == PROMPT and settings["seed"] == 5
        growing = [view[part] for view in views if "sv-growing" in view.get(part, "")]
        skipped = part == "pruned"  # "best" leaves out one scale
        assert sum("data:image/webp" in card for card in growing) == len(SIDES) - 1 - skipped
    assert "kept" in last(views, "kept") and "data:image/webp" in last(views, "kept")
    assert "x faster" in last(views, "times") or "x slower" in last(views, "times")
    figure = desk.picture(last(views, "times"))
    assert json.loads(figure.text["stepvar"])["speedup"] > 0
    assert last(views, "gallery").count("<figure") == 2
    assert "Done" in last(views, "status")


def test_a_slider_draws_only_the_accelerated_picture_again(desk):
    before = desk.draw()
    views = desk.redraw("best", [0, 0, 0, 80])
    assert not any("dense" in view for view in views)
    assert "best, changed" in last(views, "pruned")
    assert last(views, "kept") != last(before, "kept")
    assert "Dense" in last(views, "times")
    expected = desk.pipeline(
        PROMPT, seed=5, pruning=ChangedPreset("best", {"ratios": {-1: 0.8}, "skip": ()})
    ).images[0]
    np.testing.assert_array_equal(np.asarray(desk.picture(last(views, "pruned"))), np.asarray(expected))


def test_nothing_is_drawn_again_before_anything_was_drawn(desk):
    from stepvar.serving.ui.flow import Visit

    assert desk.collect(desk.flow.redraw("best", [0, 0, 0, 50], Visit())) == []


def test_times_are_medians_of_the_rounds_that_were_asked_for(desk):
    views = desk.draw(rounds="3")
    assert "Medians of 3 runs" in last(views, "times")
    assert sum("round" in view.get("status", "") for view in views) == 3


def test_the_dense_picture_can_be_left_out(desk):
    views = desk.draw(dense=False, plan="paper")
    assert "not asked for" in last(views, "dense")
    assert "Dense" not in last(views, "times")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "a dragon"}, "dragon"),
        ({"prompt": "a " * 3_000}, "characters"),
        ({"prompt": "a ring \ud800"}, "Unicode"),
        ({"negative": "a dragon"}, "dragon"),
        ({"seed": "many"}, "seed"),
        ({"seed": "-1"}, "seed"),
        ({"seed": "1.5"}, "whole number"),
        ({"seed": "1e400"}, "seed"),
        ({"size": "big"}, "size"),
        ({"size": "63x64"}, "63x64"),
        ({"guidance": "nan"}, "Guidance"),
        ({"rounds": "100"}, "rounds"),
        ({"plan": "sharp"}, "no plan"),
        ({"plan": ["best"]}, "no plan"),
        ({"plan": "sliders"}, "leaves nothing out"),
        ({"shares": [0, 0, 0, 500]}, "slider"),
        ({"shares": [0, 0, 0, "<b>"]}, "slider"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_drawn(desk, changes, words):
    own = {name: value for name, value in changes.items() if name != "shares"}
    views = desk.draw(changes.get("shares"), **own)
    assert len(views) == 1
    status = views[0]["status"]
    assert 'role="alert"' in status and words in status
    assert "Traceback" not in status and "<b>" not in status


def test_a_failure_inside_shows_no_traceback_and_no_path(desk, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("/secret/place")

    monkeypatch.setattr("stepvar.serving.ui.results.overlays", broken)
    status = last(desk.draw(), "status")
    assert 'role="alert"' in status and "secret" not in status
    monkeypatch.undo()
    assert "Done" in last(desk.draw(), "status")


def test_a_visitor_who_leaves_frees_the_queue(desk):
    async def leave():
        views = desk.flow.draw(FORM, [0, 0, 100, 40], desk.visit)
        async for view in views:
            if "sv-growing" in view.get("dense", ""):
                break
        await views.aclose()

    asyncio.run(leave())
    deadline = time.monotonic() + 20
    while (desk.server.engine.waiting or desk.server.engine.drawing) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert desk.server.engine.waiting == 0 and desk.server.engine.drawing == 0


def test_sliders_show_a_preset_and_change_nothing_else_of_it(desk):
    assert desk.plans.shares("paper") == [0.4, 0.5, 1.0, 1.0]
    assert desk.plans.shares("skipvar") is None
    assert desk.plans.plan("paper", [0.4, 0.5, 1.0, 1.0]) == "paper"
    moved = desk.plans.plan("best", [0.0, 0.0, 1.0, 0.7]).apply(desk.pipeline.presets)
    method = desk.pipeline.presets["best"].method
    assert moved.ratios == {-1: 0.7} and moved.skip == (-2,)
    assert (moved.recovery, moved.unguided) == (method.recovery, method.unguided)
    assert "tokens run" in desk.flow.describe_plan("best", [0, 0, 100, 40])
    assert "leaves nothing out" in desk.flow.describe_plan("sliders", [0, 0, 0, 0])


def test_text_is_escaped_everywhere():
    from stepvar.serving.ui import fragments
    from stepvar.serving.ui.files import PageFile

    sharp = '"><script>alert(1)</script>'
    file = PageFile("v1/files/x.png", f"{sharp}.png", "png")
    shown = fragments.Shown(file, sharp, sharp)
    for html in (
        fragments.gallery([shown]),
        fragments.status(sharp),
        fragments.header(sharp),
        fragments.finished_card(sharp, 1.0, sharp, file, sharp),
        fragments.growing_card(sharp, None, 1, 2, sharp),
        fragments.kept_card([("data:,", sharp, sharp)], "group"),
    ):
        assert "<script" not in html


def test_a_video_grows_by_its_scales_and_is_kept_as_a_video():
    from tiny_star import make_star_pipeline

    desk = Desk(make_star_pipeline(clip_frames=4))
    try:
        views = desk.draw(plan=desk.plans.usual, seconds="1")
        assert "x faster" in last(views, "times") or "x slower" in last(views, "times"), last(views, "status")
        assert "<video" in last(views, "pruned") or ".gif" in last(views, "pruned")
        assert any("scale 3 of" in view.get("dense", "") for view in views)
    finally:
        desk.server.engine.stop()
