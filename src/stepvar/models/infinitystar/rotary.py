"""Rotary positions of space-time tokens: step, latent frame, row and column.

Source: FoundationVision/InfinityStar (MIT), infinity/models/basic.py (`precompute_rope4d_freqs_grid`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.models.infinitystar.schedules import VideoScale

AXES = 4
BASE = 10000.0


class RotaryTables:
    """Makes the rotary table of a step, for all layers at once.

    A quarter of a head's pairs turns with each axis, by the same frequencies. The rows and columns of a grid
    are measured in those of the position grid, so that one place has one position at every scale.

    Args:
        head_dim: Channels c of a head, a multiple of 8.
        position_grid: (H, W).
        device: Where the tables go.
    """

    def __init__(self, head_dim: int, position_grid: tuple[int, int], device: torch.device) -> None:
        count = head_dim // (2 * AXES)
        exponents = torch.arange(count, device=device, dtype=torch.float32) / count
        self.frequencies = 1.0 / BASE**exponents
        self.position_grid = position_grid

    def text(self, tokens: int) -> Tensor:
        """Table [1, L, c / 2] of a text prefix: a token's step is its place in the text."""
        steps = self._turn(torch.arange(tokens, device=self.frequencies.device))
        still = torch.ones_like(steps)
        return torch.cat([steps, still, still, still], dim=1)[None]

    def scale(self, scale: VideoScale) -> Tensor:
        """Table [1, N, c / 2] of a step's tokens, time slowest."""
        frames = range(scale.first_frame, scale.first_frame + scale.frames)
        return self.grid(scale.position, list(frames), (scale.height, scale.width))

    def grid(self, position: int, frames: list[int], sides: tuple[int, int]) -> Tensor:
        """Table [1, N, c / 2], complex of length one, of all tokens at a step, in frames x rows x columns."""
        device = self.frequencies.device
        places = [
            (torch.arange(size, device=device).float() * (full / size)).round()
            for size, full in zip(sides, self.position_grid, strict=True)
        ]
        step = self._turn(torch.tensor([position], dtype=torch.int64, device=device))
        axes = (
            step[:, None, None],
            self._turn(torch.tensor(frames, dtype=torch.int64, device=device))[:, None, None],
            self._turn(places[0])[None, :, None],
            self._turn(places[1])[None, None, :],
        )
        shape = (len(frames), *sides, len(self.frequencies))
        return torch.cat([axis.expand(shape) for axis in axes], dim=-1).flatten(0, 2)[None]

    def _turn(self, positions: Tensor) -> Tensor:
        """positions [P] -> [P, c / 8] complex64."""
        angles = positions.float()[:, None] * self.frequencies
        return torch.complex(angles.cos(), angles.sin())
