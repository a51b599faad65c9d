"""KV cache of VAREdit's first layer: the source at the resolution of the scale that attends to it.

Source: `cached_init_k` and `cached_init_v` of HiDream-ai/VAREdit, infinity/models/basic.py (scale-aligned
reference).
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.cache import LayerCache

SpatialGrid = tuple[int, int]


class ScaleAlignedCache(LayerCache):
    """Keys and values of the first layer: full-resolution source kept apart, its averages seen by each scale.

    The buffer has room for the source before the target tokens. Before a scale runs, the source is averaged
    to the scale's own grid and written directly before the target tokens, so what a query sees is one view:
    nothing is concatenated, and no mask is needed. Averaging comes after norm and rotation, without
    normalising again, as the weights were trained.

    Args:
        keys, values: [R, H, source tokens + cached target tokens, c].
        grid: Rows and columns of the source's token map.
    """

    def __init__(self, keys: Tensor, values: Tensor, grid: SpatialGrid) -> None:
        super().__init__(keys, values)
        self.grid = grid
        self.source: tuple[Tensor, Tensor] | None = None
        # Until a scale begins, nothing is there to be seen.
        self.first = keys.shape[2]

    @property
    def source_tokens(self) -> int:
        """Tokens of the source's map."""
        return self.grid[0] * self.grid[1]

    def begin_scale(self, grid: SpatialGrid) -> None:
        """Averages the source to a scale's grid (rows, columns), for all rows."""
        if self.source is None:
            raise RuntimeError("A scale began before the source pass.")
        self.first = self.source_tokens - grid[0] * grid[1]
        for buffer, source in zip((self.keys, self.values), self.source, strict=True):
            buffer[:, :, self.first : self.source_tokens] = _area_averaged(source, self.grid, grid)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The source pass comes first and sees itself; scales see averages and target tokens."""
        if self.source is None:
            self.source = (key.to(self.keys.dtype), value.to(self.values.dtype))
            self.length = self.source_tokens
            return key, value
        if self.first > self.source_tokens:
            raise RuntimeError("A scale attends to a source that was not averaged to its grid.")
        return super().extend(key, value)


def _area_averaged(values: Tensor, grid: SpatialGrid, target: SpatialGrid) -> Tensor:
    """Tokens [R, H, h w, c] of a grid averaged to another one, [R, H, h' w', c]."""
    if grid == target:
        return values
    rows, heads, _, channels = values.shape
    maps = values.transpose(2, 3).reshape(rows, heads * channels, *grid)
    averaged = functional.adaptive_avg_pool2d(maps, target)
    return averaged.view(rows, heads, channels, target[0] * target[1]).transpose(2, 3)
