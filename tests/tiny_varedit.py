"""A tiny real VAREdit with random weights that knows the scenes' words, and a picture to edit."""

from __future__ import annotations

import numpy as np
from PIL import Image

from stepvar.models.varedit.pipeline import VAREditPipeline
from tiny_pipeline import PIXELS, make_parts


def make_varedit_pipeline(seed: int = 0) -> VAREditPipeline:
    """Builds it on the parts of the tiny Infinity; the same seed gives the same weights."""
    pipeline = VAREditPipeline(**make_parts(seed))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_source(width: int = PIXELS, height: int = PIXELS, seed: int = 0) -> Image.Image:
    """A picture with edges and noise."""
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn[height // 4 : height // 2, width // 3 :] = (200, 30, 90)
    return Image.fromarray(drawn)


SOURCE = make_source()
