"""Tiled decoding of a video: tiles of the plane, blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

USUAL_TILE = 32
"""Side in latent cells of a tile, where tiles were asked for without a size."""


def decode_tiles(
    decode: Callable[[Tensor], Iterator[Tensor]],
    latent: Tensor,
    tile: int,
    overlap: int,
    pixels_per_cell: int,
) -> Iterator[Tensor]:
    """Decodes tiles in step over time and joins each chunk.

    Args:
        decode: Latents [B, C, T, h, w] -> chunks of frames [B, 3, n, h p, w p].
        latent: [B, C, T, H, W].
        tile: Side of a tile in cells, its overlap included.
        overlap: Cells that neighbours share. The frames equal those of the whole picture when a quarter of
            it is as far as the decoder sees; with less, small differences are blended away.
        pixels_per_cell: p.

    Yields:
        Chunks of frames [B, 3, n, H p, W p].

    Raises:
        ValueError: When a tile would be all overlap.
    """
    if not 0 <= 2 * overlap < tile:
        raise ValueError(
            f"Tiles of {tile} cells cannot share {overlap} with each neighbour: take a tile of more than "
            f"{2 * overlap}."
        )
    height, width = latent.shape[-2:]
    places = [(row, column) for row in spans(height, tile, overlap) for column in spans(width, tile, overlap)]
    streams = [decode(latent[..., slice(*row), slice(*column)]) for row, column in places]
    for chunks in zip(*streams, strict=True):
        frames = chunks[0].new_zeros(*chunks[0].shape[:3], height * pixels_per_cell, width * pixels_per_cell)
        for (row, column), chunk in zip(places, chunks, strict=True):
            weights = [
                _ramp(span, size, overlap, pixels_per_cell, chunk.device)
                for span, size in ((row, height), (column, width))
            ]
            rows, columns = (slice(*(edge * pixels_per_cell for edge in span)) for span in (row, column))
            frames[..., rows, columns] += chunk * weights[0][:, None] * weights[1]
        yield frames


def spans(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Tiles of an axis: all but the last are `tile` long, and each shares `overlap` with the next."""
    starts = range(0, max(size - overlap, 1), tile - overlap)
    return [(start, min(start + tile, size)) for start in starts]


def _ramp(
    span: tuple[int, int], size: int, overlap: int, pixels_per_cell: int, device: torch.device
) -> Tensor:
    """Weights of a tile's pixels along one axis; those of overlapping tiles add up to 1.

    A tile does not know what lies beyond its edge, so the outer quarter of an overlap counts for nothing.
    """
    weights = torch.ones((span[1] - span[0]) * pixels_per_cell, dtype=torch.float32, device=device)
    length = overlap * pixels_per_cell
    ramp = (2.0 * (torch.arange(length, device=device) + 0.5) / max(length, 1) - 0.5).clamp(0.0, 1.0)
    if span[0] > 0:
        weights[:length] = ramp
    if span[1] < size:
        weights[len(weights) - length :] = 1.0 - ramp
    return weights
