"""Arguments of another kind, not finite, or without bound: one sentence, at once, and nothing is drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar.editing.pictures import weights_of
from stepvar.generation.fields import require_fields
from stepvar.pruning.fastervar import FasterVAR
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.int8_cache import Int8Cache
from stepvar.pruning.recovery import Guided
from stepvar.pruning.scalekv import ScaleKV
from stepvar.pruning.skipvar import SkipVAR
from stepvar.pruning.stepvar import StepVAR
from tiny_pipelines import made

NAN, INF, HUGE = float("nan"), float("inf"), 10**30
METHODS = {
    StepVAR: {"ratios": {-1: 0.5}},
    FastVAR: {"ratios": {-1: 0.5}},
    FasterVAR: {"ratios": {-1: 0.5}},
    ScaleKV: {"share": 0.5},
    SkipVAR: {},
    Int8Cache: {},
    Guided: {},
}
NO_NUMBERS = (NAN, INF, -INF, "x", b"x", torch.tensor(3.5), HUGE, object())


def refused(call, *arguments, **options):
    """What a call says that must be refused in one short sentence."""
    with pytest.raises(ValueError) as caught:  # what it says differs, how it says so does not
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    return message


@pytest.mark.parametrize(
    ("method", "name"), [(method, entry.name) for method in METHODS for entry in fields(method)]
)
def test_fields_of_pruning_methods(method, name):
    for value in NO_NUMBERS:
        if name != "bandwidth" or value is not HUGE:  # a large number is a number
            assert name in refused(method, **{**METHODS[method], name: value}).replace(" ", "_")


def test_many_groups_are_as_many_as_there_are_layers():
    assert FasterVAR(ratios={-1: 0.5}, groups=2**62).group_layers(24) == 1


def test_fields_are_compared_with_their_annotations():
    @dataclass
    class Settings:
        count: int = 1
        share: float | None = None
        names: tuple[str, ...] = ()

    for good in ({"count": np.int64(3)}, {"share": 1}, {"share": np.float32(0.5)}, {"names": ["a"]}):
        require_fields(Settings(**good))
    for name, bad in (
        ("count", True),
        ("count", 1.0),
        ("share", NAN),
        ("share", 10**400),
        ("names", "a"),
        ("names", [1]),
    ):
        with pytest.raises(ValueError, match=f"{name} of Settings is"):
            require_fields(Settings(**{name: bad}))


CALLS = {
    "guidance_scale": (NAN, INF, 10**400, True, "3", [NAN], torch.tensor(NAN), {}),
    "temperature": (NAN, INF, 0, -1, 1e-42, "x", [0.5, NAN], True),
    "top_k": (-1, NAN, 1.5, True),
    "top_p": (NAN, -1, 2, "x"),
    "seed": (NAN, 3.9, -1, 2**70, "x", [1, 2], True, [True], torch.tensor(3)),
    "aspect_ratio": (NAN, INF, 0, -1, "1:0", "16:9", 10**400),
    "height": (NAN, -1, 0, 10**9, 1.5, "x"),
    "num_images_per_prompt": (0, -1, NAN, 1.5, HUGE, True),
    "batch_invariant": ("yes", 5, None),
    "cascade": (5, "x"),
    "negative_prompt": (5, b"x", ["a", "b", "c"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_a_call(name):
    pipeline = made("infinity")
    for value in CALLS[name]:
        refused(pipeline, "a red star", **{name: value})


@pytest.mark.parametrize("prompt", [b"red", 5, {"a red star": 1}, [], ["a", 5], "\ud800", "x" * 100_000])
def test_prompts(prompt):
    refused(made("infinity"), prompt)


@pytest.mark.parametrize("embeds", [5, "x", [torch.zeros(3)], torch.zeros(1, 3, 5)])
def test_encoded_prompts(embeds):
    refused(made("infinity"), prompt_embeds=embeds)


EDITS = {
    "feather": (NAN, -1, 1.5, "x", True),
    "margin": (NAN, -1, 1.5, "x"),
    "late_scales": (NAN, -1, "x"),
    "strength": (NAN, INF, -1, 0, 2, "x", True),
    "box": ((0, 0, 0, 0), (0, 0, HUGE, 2), (NAN, 0, 1, 1), "0,0,4,4", 5, ((0, 0, 4),), []),
    "outpaint": ((NAN, 0, 0, 0), (HUGE, 0, 0, 0), (-1, 0, 0, 0), 5, "x", (1,)),
    "composited": ("x", None),
    "fit": ("x", None),
    "image": (5, b"x", None, "nothing.png", [], Image.new("RGB", (0, 0))),
    "mask": (5, b"x", "nothing.png", [], Image.new("L", (3, 64))),
}


@pytest.mark.parametrize("name", EDITS)
def test_arguments_of_an_edit(name):
    picture = Image.new("RGB", (64, 64), (200, 10, 10))
    for value in EDITS[name]:
        given = {"image": picture, "box": (0, 0, 16, 16), "seed": 1, name: value}
        if name == "mask":
            del given["box"]
        refused(made("infinity").edit, "a red star", **given)


@pytest.mark.parametrize("name", ["margin", "late_scales"])
def test_widths_beyond_the_picture_are_those_of_the_picture(name):
    picture = Image.new("RGB", (64, 64), (200, 10, 10))
    call = {"image": picture, "box": (0, 0, 16, 16), "seed": 1}
    beyond, widest = (
        made("infinity").edit("a red star", **call, **{name: value}).images[0].tobytes()
        for value in (10**9, 100)
    )
    assert beyond == widest


def test_a_feather_wider_than_the_picture():
    mask = np.zeros((16, 24), dtype=np.bool_)
    mask[4:9, 5:20] = True
    shares = weights_of(mask, 10**9) * (10**9 + 1)
    assert shares.max() == pytest.approx(3.0) and not shares[~mask].any()
    assert np.array_equal(
        weights_of(~mask, 30), weights_of(np.pad(~mask, 40, mode="edge"), 30)[40:-40, 40:-40]
    )
