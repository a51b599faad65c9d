"""Published weights of VAREdit, and which sizes weights can draw.

Source: HiDream-ai/VAREdit, infer.py and app.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.published import PUBLISHED_SIZES
from stepvar.models.infinity.sizes import SizeTable

logger = logging.getLogger(__name__)

BUDGETS = {"256": "0.06M", "512": "0.25M", "1024": "1M"}
"""Pixel budget by the side of the square that weights were trained for."""


@dataclass(frozen=True)
class PublishedWeights:
    """One published file.

    Attributes:
        size: Infinity's name of the transformer's size.
        resolution: Side in pixels of the square it was trained for.
    """

    size: str
    resolution: str

    @property
    def budget(self) -> str:
        """Its pixel budget."""
        return BUDGETS[self.resolution]

    @property
    def vae_type(self) -> str:
        """Bits per latent position of its visual tokenizer, which is Infinity's."""
        return PUBLISHED_SIZES[self.size].tokenizer_type


PUBLISHED_WEIGHTS: dict[str, PublishedWeights] = {
    "2B-512": PublishedWeights("2B", "512"),
    "8B-512": PublishedWeights("8B", "512"),
    "8B-1024": PublishedWeights("8B", "1024"),
}
"""By name of the official file, without .pth."""


def find_resolution(name: str, size: str | None) -> str | None:
    """What weights were trained for, as far as the name of their file, or else their size, tells.

    Args:
        name: Of the file or folder.
        size: Infinity's name of the transformer's size; None for another one.

    Returns:
        "256", "512" or "1024"; None when it stays open.
    """
    named = set(re.findall(r"(?<!\d)(256|512|1024)(?!\d)", name))
    if len(named) == 1:
        return str(named.pop())
    known = {entry.resolution for entry in PUBLISHED_WEIGHTS.values() if entry.size == size}
    return known.pop() if len(known) == 1 else None


def check_schedule(schedule: ScaleSchedule, table: SizeTable, budgets: Sequence[str] | None) -> None:
    """Refuses sizes at which tokens have other positions than in training; notes canvases that are no square.

    Below the largest budget the position of a token follows from its number in the whole sequence, so weights
    of one budget know nothing of another's.

    Args:
        schedule: What is to be drawn.
        table: The model's sizes.
        budgets: What the weights were trained for; None when unknown.

    Raises:
        ValueError: Naming the sizes that they know.
    """
    height, width = table.pixels(schedule)
    known = {} if budgets is None else table.all_pixels(budgets)
    if known and (height, width) not in known:
        squares = [f"{wide}x{high}" for high, wide in known if high == wide]
        raise ValueError(
            f"These weights edit {' or '.join(squares)} pixels, and at {width}x{height} their tokens would "
            "have positions that they never saw: leave the size out, or load the weights of that size."
        )
    if height != width and len(table.templates) > 1:
        logger.warning("The published weights saw square pictures only; %dx%d may look poor.", width, height)
