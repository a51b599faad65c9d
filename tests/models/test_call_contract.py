"""The contract of a call, which is the same for every pipeline."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from stepvar.models import MODELS
from stepvar.models.pipeline import NextScalePipeline
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline

MAKERS: dict[str, tuple[Callable[..., NextScalePipeline], Any]] = {
    "infinity": (make_infinity_pipeline, "a red star"),
    "var": (make_var_pipeline, 1),
    "hart": (make_hart_pipeline, "a red star"),
    "switti": (make_switti_pipeline, "a red star"),
    "infinitystar": (make_star_pipeline, "a red star on sand"),
}
GROWING = ("var", "hart", "switti")
"""Models whose official code counts guidance from 0."""

each_model = pytest.mark.parametrize("name", MAKERS)


@cache
def made(name: str) -> NextScalePipeline:
    """A tiny pipeline, made once; tests must leave it as it was."""
    return MAKERS[name][0]()


def call(pipeline: NextScalePipeline, name: str, **options: Any) -> Any:
    """The output of one picture, or of a video of one frame."""
    length = {"seconds": 0} if pipeline.draws_videos and "num_frames" not in options else {}
    return pipeline(MAKERS[name][1], **{"seed": 3, **length, **options})


def pixels(output: Any) -> np.ndarray:
    """Bytes of the first picture."""
    return np.asarray(output.images[0])


def test_every_model_is_here():
    assert MAKERS.keys() == {spec.key for spec in MODELS}


@each_model
def test_a_guidance_of_one_is_off(name):
    report = call(made(name), name, guidance_scale=1).report
    assert {scale.rows for scale in report.scales} == {1}
    assert set(report.settings["guidance_scale"]) == {1.0}
    guided = call(made(name), name, guidance_scale=2).report
    assert max(scale.rows for scale in guided.scales) == 2


@pytest.mark.parametrize("name", GROWING)
def test_a_folder_of_an_earlier_version_keeps_its_guidance(name, tmp_path):
    pipeline = made(name)
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text("utf-8"))
    assert index.pop("_guidance_off") == 1.0
    index["guidance_scale"] -= 1.0
    file.write_text(json.dumps(index), "utf-8")
    loaded = type(pipeline).from_pretrained(tmp_path)
    assert loaded.config["guidance_scale"] == pipeline.config["guidance_scale"]
    assert np.array_equal(pixels(call(loaded, name)), pixels(call(pipeline, name)))
    given = type(pipeline).from_pretrained(tmp_path, guidance_scale=2.5)
    assert given.config["guidance_scale"] == 2.5


@each_model
def test_another_pipeline_of_the_same_components_draws_the_same(name):
    source = made(name)
    changed = type(source)(**MAKERS[name][0]().components, guidance_scale=1.5)
    again = type(source)(**changed.components)
    assert np.array_equal(pixels(call(changed, name)), pixels(call(source, name, guidance_scale=1.5)))
    assert again.config["guidance_scale"] == source.config["guidance_scale"]
    assert np.array_equal(pixels(call(again, name)), pixels(call(source, name)))


@each_model
def test_a_subclass_keeps_its_presets(name):
    own = type("Own", (type(made(name)),), {})(**MAKERS[name][0]().components)
    assert own.presets == made(name).presets
    assert own.summary("prune").flops < own.summary().flops


@each_model
def test_the_summary_takes_the_arguments_of_the_call(name):
    pipeline, subject = made(name), MAKERS[name][1]
    sampling = {"top_k": 1, "top_p": 0.5, "seed": [1, 2, 3], "output_type": "np", "observer": print}
    if pipeline.reads_text:
        sampling["negative_prompt"] = ["blue", "big", "green"]
    told = pipeline.summary("prune", guidance_scale=2, **sampling)
    assert told.costs == pipeline.summary(pruning="prune", guidance_scale=2).costs
    several = pipeline.summary("prune", **{pipeline._subject: [subject] * 3}, num_images_per_prompt=2)
    assert several.costs == pipeline.summary("prune", images=6).costs
    with pytest.raises(ValueError, match="takes no guidance_scal: did you mean guidance_scale"):
        pipeline.summary(guidance_scal=2)


@each_model
def test_call_and_check_have_one_signature(name):
    kind = type(made(name))
    left, right = (inspect.signature(method).parameters for method in (kind.__call__, kind.check))
    assert list(left.values()) == list(right.values())
    assert list(left)[1:4] == [kind._subject, "height", "width"]
    assert "guidance_scale: " in (kind.__call__.__doc__ or "")


@each_model
def test_every_pipeline_knows_the_pixels_of_a_schedule(name):
    pipeline = made(name)
    height, width = pipeline.pixels(pipeline.schedule())
    assert pixels(call(pipeline, name)).shape == (height, width, 3)
