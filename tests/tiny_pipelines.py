"""One tiny pipeline of each model, with something that each draws."""

from __future__ import annotations

from functools import cache
from typing import Any

from stepvar.models.pipeline import NextScalePipeline
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline
from tiny_varedit import SOURCE, make_varedit_pipeline

TEXTS, CLASSES, SCENES = ["a red star", "a blue ring"], [1, 2], ["a red star on sand", "a blue ring on grass"]
MAKERS = {
    "infinity": (make_infinity_pipeline, TEXTS, "InfinityPipeline"),
    "var": (make_var_pipeline, CLASSES, "VARPipeline"),
    "hart": (make_hart_pipeline, TEXTS, "HARTPipeline"),
    "switti": (make_switti_pipeline, TEXTS, "SwittiPipeline"),
    "causal switti": (lambda: make_switti_pipeline(causal=True), TEXTS, "SwittiPipeline"),
    "infinitystar": (make_star_pipeline, SCENES, "InfinityStarPipeline"),
    "varedit": (make_varedit_pipeline, TEXTS, "VAREditPipeline"),
}
"""What makes a pipeline, two subjects to draw, and the name of its class."""

PICTURES = [name for name in MAKERS if name != "infinitystar"]

MASKED = [name for name in PICTURES if name != "varedit"]
"""Models that edit a picture by a mask."""


def needed(pipeline: NextScalePipeline, still: bool = True) -> dict[str, Any]:
    """Arguments that a call of this kind of pipeline needs besides what to draw.

    Args:
        still: Whether a model of videos is to draw a picture.
    """
    if pipeline.needs_picture:
        return {"image": SOURCE}
    return {"seconds": 0} if pipeline.draws_videos and still else {}


@cache
def made(name: str) -> NextScalePipeline:
    """A tiny pipeline, made once; tests must leave it as it was."""
    return MAKERS[name][0]()
