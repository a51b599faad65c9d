"""Bits of a picture do not depend on the program around a call: default format, autocast, gradients."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from stepvar import FasterVAR, FastVAR, StepVAR
from tiny_pipelines import MAKERS, made, needed

PLANS = {
    "dense": None,
    "stepvar": StepVAR(ratios={-2: 0.4, -1: 0.6}, recovery="guided", values="expected"),
    "fastvar": FastVAR(ratios={-2: 0.4, -1: 0.6}),
    "fastervar": FasterVAR(ratios={-2: 0.4, -1: 0.6}, unguided=-2, remaining="unconditional"),
}


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients": torch.enable_grad,
}


def pixels(name: str, pruning) -> torch.Tensor:
    own = needed(made(name), still=False)
    output = made(name)(MAKERS[name][1][0], seed=5, pruning=pruning, output_type="pt", **own)
    drawn = output.frames if made(name).draws_videos else output.images
    return torch.stack(list(drawn)) if isinstance(drawn, (list, tuple)) else drawn


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_picture_does_not_depend_on_what_surrounds_the_call(name, plan):
    expected = pixels(name, PLANS[plan])
    for surrounding, enter in SURROUNDINGS.items():
        with enter():
            drawn = pixels(name, PLANS[plan])
        assert drawn.dtype == expected.dtype and torch.equal(drawn, expected), surrounding
