"""Scales and scale schedules: which token maps a model predicts, coarse to fine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Grid = tuple[int, int, int]
"""Frames, rows and columns of a token map: (t, h, w); a picture has t = 1."""


@dataclass(frozen=True)
class Scale:
    """One forward step of a schedule: a token map of t x h x w tokens.

    Attributes:
        index: Position in the schedule, counted from 0.
        height, width, frames: Grid of the token map, in tokens.
        part: Tokens of this step, where a map is drawn in several steps; None where it is drawn at once.
    """

    index: int
    height: int
    width: int
    frames: int = 1
    part: int | None = None

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"Scale {self.index} has a token map of {self}: every side must be 1 or more.")

    @property
    def grid(self) -> Grid:
        return (self.frames, self.height, self.width)

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width if self.part is None else self.part

    def __str__(self) -> str:
        sides = f"{self.height}x{self.width}"
        return sides if self.frames == 1 else f"{self.frames}x{sides}"


@dataclass(frozen=True)
class ScaleSchedule(Sequence[Scale]):
    """The scales of one generation, coarse to fine.

    Attributes:
        scales: The scales in order.
        position_grid: Rows and columns in whose units token positions are measured, so that the
            same place has the same position at every scale. Defaults to the last scale's grid.
    """

    scales: tuple[Scale, ...]
    position_grid: tuple[int, int] = field(default=(0, 0))

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("A scale schedule needs at least one scale.")
        if self.position_grid == (0, 0):
            object.__setattr__(self, "position_grid", (self.scales[-1].height, self.scales[-1].width))

    @classmethod
    def from_grids(
        cls, grids: Sequence[tuple[int, int]], position_grid: tuple[int, int] = (0, 0)
    ) -> ScaleSchedule:
        """Builds a schedule of pictures from (rows, columns) pairs.

        Raises:
            ValueError: When a side is below 1, or below that of the scale before.
        """
        for index, (coarse, fine) in enumerate(pairwise(grids), start=1):
            if fine[0] < coarse[0] or fine[1] < coarse[1]:
                raise ValueError(
                    f"Scale {index} of the schedule has {fine[0]}x{fine[1]} tokens, fewer a side than the "
                    f"one before ({coarse[0]}x{coarse[1]}): scales go from coarse to fine."
                )
        scales = tuple(Scale(index, height, width) for index, (height, width) in enumerate(grids))
        return cls(scales, position_grid)

    @property
    def final(self) -> Scale:
        return self.scales[-1]

    @property
    def tokens(self) -> int:
        """Tokens of all scales together."""
        return sum(scale.tokens for scale in self.scales)

    def __len__(self) -> int:
        return len(self.scales)

    def __getitem__(self, index: int) -> Scale:  # type: ignore[override]
        return self.scales[index]

    def __iter__(self) -> Iterator[Scale]:
        return iter(self.scales)
