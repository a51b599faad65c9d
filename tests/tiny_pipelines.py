"""One tiny pipeline of each model, with something that each draws."""

from __future__ import annotations

from functools import cache

from stepvar.models.pipeline import NextScalePipeline
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline

TEXTS, CLASSES, SCENES = ["a red star", "a blue ring"], [1, 2], ["a red star on sand", "a blue ring on grass"]
MAKERS = {
    "infinity": (make_infinity_pipeline, TEXTS, "InfinityPipeline"),
    "var": (make_var_pipeline, CLASSES, "VARPipeline"),
    "hart": (make_hart_pipeline, TEXTS, "HARTPipeline"),
    "switti": (make_switti_pipeline, TEXTS, "SwittiPipeline"),
    "causal switti": (lambda: make_switti_pipeline(causal=True), TEXTS, "SwittiPipeline"),
    "infinitystar": (make_star_pipeline, SCENES, "InfinityStarPipeline"),
}
"""What makes a pipeline, two subjects to draw, and the name of its class."""

PICTURES = [name for name in MAKERS if name != "infinitystar"]


@cache
def made(name: str) -> NextScalePipeline:
    """A tiny pipeline, made once; tests must leave it as it was."""
    return MAKERS[name][0]()
