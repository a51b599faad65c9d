"""Sizes of the embedded picture model, a small Infinity, and its transformer with fresh weights."""

from __future__ import annotations

from dataclasses import dataclass

from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.scenes.text_encoder import TEXT_CHANNELS, TEXT_LENGTH
from stepvar.training.common.crops import PIXELS_PER_TOKEN

BITS = 16


@dataclass(frozen=True)
class PictureModelSize:
    """How large the pictures and the transformer are.

    Attributes:
        canvas: Side of the pictures in pixels.
        sides: Sides of the token maps, coarse to fine.
        depth, width, heads: Of the transformer.
    """

    canvas: int
    sides: tuple[int, ...]
    depth: int
    width: int
    heads: int

    @property
    def grids(self) -> list[tuple[int, int]]:
        """The scale schedule as (rows, columns)."""
        return [(side, side) for side in self.sides]

    def crop_grids(self, side: int) -> list[tuple[int, int]]:
        """The schedule scaled down to a crop of `side` pixels; all scales are kept."""
        shrunk = (max(1, round(scale * side / self.canvas)) for scale in self.sides)
        return [(scale, scale) for scale in shrunk]


SIZES: dict[str, PictureModelSize] = {
    "192": PictureModelSize(192, (1, 2, 3, 4, 6, 9, 13, 18, 24), depth=8, width=192, heads=3),
    "256": PictureModelSize(256, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), depth=8, width=192, heads=3),
    "384": PictureModelSize(384, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32, 40, 48), depth=8, width=192, heads=3),
}
"""By name: 1,216 tokens a picture, 2,240 and 6,144. Each has the scales of the one before and more,
so that its training may start from the smaller one's weights."""


def build_transformer(size: PictureModelSize) -> InfinityTransformer:
    """The small Infinity with fresh weights."""
    return InfinityTransformer(
        depth=size.depth,
        width=size.width,
        heads=size.heads,
        bits=BITS,
        text_channels=TEXT_CHANNELS,
        text_length=TEXT_LENGTH,
        pool_heads=4,
        levels=len(size.sides),
        tokenizer_type="scenes",
        grids=size.grids,
        pixels_per_token=PIXELS_PER_TOKEN,
    )
