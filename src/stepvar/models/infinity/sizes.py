"""Scale schedules of Infinity by aspect ratio and pixel budget: the picture sizes that a model draws.

Source of the published tables: FoundationVision/Infinity, utils/dynamic_resolution.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepvar.generation.schedule import ScaleSchedule

Sides = tuple[int, int]

# Rows and columns of the 13 scales, for pictures at least as high as wide.
_TALL: dict[float, Sequence[Sides]] = {
    1.0: (
        (1, 1),
        (2, 2),
        (4, 4),
        (6, 6),
        (8, 8),
        (12, 12),
        (16, 16),
        (20, 20),
        (24, 24),
        (32, 32),
        (40, 40),
        (48, 48),
        (64, 64),
    ),
    1.25: (
        (1, 1),
        (2, 2),
        (3, 3),
        (5, 4),
        (10, 8),
        (15, 12),
        (20, 16),
        (25, 20),
        (30, 24),
        (35, 28),
        (45, 36),
        (55, 44),
        (70, 56),
    ),
    1.333: (
        (1, 1),
        (2, 2),
        (4, 3),
        (8, 6),
        (12, 9),
        (16, 12),
        (20, 15),
        (24, 18),
        (28, 21),
        (36, 27),
        (48, 36),
        (60, 45),
        (72, 54),
    ),
    1.5: (
        (1, 1),
        (2, 2),
        (3, 2),
        (6, 4),
        (9, 6),
        (15, 10),
        (21, 14),
        (27, 18),
        (33, 22),
        (39, 26),
        (48, 32),
        (63, 42),
        (78, 52),
    ),
    1.75: (
        (1, 1),
        (2, 2),
        (3, 3),
        (7, 4),
        (11, 6),
        (14, 8),
        (21, 12),
        (28, 16),
        (35, 20),
        (42, 24),
        (56, 32),
        (70, 40),
        (84, 48),
    ),
    2.0: (
        (1, 1),
        (2, 2),
        (4, 2),
        (6, 3),
        (10, 5),
        (16, 8),
        (22, 11),
        (30, 15),
        (38, 19),
        (46, 23),
        (60, 30),
        (74, 37),
        (90, 45),
    ),
    2.5: (
        (1, 1),
        (2, 2),
        (5, 2),
        (10, 4),
        (15, 6),
        (20, 8),
        (25, 10),
        (30, 12),
        (40, 16),
        (50, 20),
        (65, 26),
        (80, 32),
        (100, 40),
    ),
    3.0: (
        (1, 1),
        (2, 2),
        (6, 2),
        (9, 3),
        (15, 5),
        (21, 7),
        (27, 9),
        (36, 12),
        (45, 15),
        (54, 18),
        (72, 24),
        (90, 30),
        (111, 37),
    ),
}

PUBLISHED_BUDGETS: dict[str, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""How many scales of a template each pixel budget runs."""


def _published_templates() -> dict[float, tuple[Sides, ...]]:
    templates: dict[float, tuple[Sides, ...]] = {}
    for ratio, grids in _TALL.items():
        templates[ratio] = tuple(grids)
        if ratio != 1.0:
            templates[int(1000 / ratio) / 1000] = tuple((width, height) for height, width in grids)
    return templates


@dataclass(frozen=True)
class SizeTable:
    """The sizes of a model.

    Attributes:
        templates: Grids of all scales by height / width of the picture.
        budgets: How many scales of a template a pixel budget runs, by name.
        pixels_per_token: Side in pixels that a token of a last scale stands for.
    """

    templates: Mapping[float, tuple[Sides, ...]]
    budgets: Mapping[str, int]
    pixels_per_token: int = 16

    @classmethod
    def published(cls) -> SizeTable:
        """The 15 aspect ratios and 4 pixel budgets of the official Infinity."""
        return cls(_published_templates(), PUBLISHED_BUDGETS)

    @classmethod
    def single(cls, grids: Sequence[Sides], pixels_per_token: int) -> SizeTable:
        """One schedule only, as a small model has it."""
        height, width = grids[-1]
        pixels = f"{height * pixels_per_token}x{width * pixels_per_token}"
        templates = {height / width: tuple((rows, columns) for rows, columns in grids)}
        return cls(templates, {pixels: len(grids)}, pixels_per_token)

    def schedule(self, template: float, budget: str) -> ScaleSchedule:
        """The schedule of one template and budget.

        Raises:
            ValueError: When the table has no such entry.
        """
        if template not in self.templates:
            known = ", ".join(f"{ratio:g}" for ratio in self.templates)
            raise ValueError(f"No schedule has the aspect ratio {template:g}; there are {known}.")
        if budget not in self.budgets:
            raise ValueError(f"Unknown pixel budget {budget!r}; known are {', '.join(self.budgets)}.")
        grids = self.templates[template]
        return ScaleSchedule.from_grids(grids[: self.budgets[budget]], position_grid=grids[-1])

    def largest(self, schedule: ScaleSchedule) -> ScaleSchedule:
        """The schedule of the largest pixel budget at the aspect ratio of a schedule of this table.

        Raises:
            ValueError: When the table has no such schedule.
        """
        grids = tuple((scale.height, scale.width) for scale in schedule)
        budget = max(self.budgets, key=lambda name: self.budgets[name])
        for template, every in self.templates.items():
            if every[: len(grids)] == grids and every[-1] == schedule.position_grid:
                return self.schedule(template, budget)
        raise ValueError(f"No template of this table begins with the scales {', '.join(map(str, schedule))}.")

    def pixels(self, schedule: ScaleSchedule) -> Sides:
        """Height and width in pixels of a schedule's picture."""
        return (
            schedule.final.height * self.pixels_per_token,
            schedule.final.width * self.pixels_per_token,
        )

    def all_pixels(self, budgets: Sequence[str] | None = None) -> dict[Sides, tuple[float, str]]:
        """Every legal (height, width) in pixels, with its template and budget."""
        return {
            self.pixels(self.schedule(template, budget)): (template, budget)
            for budget in (budgets or self.budgets)
            for template in self.templates
        }

    def nearest_template(self, ratio: float) -> float:
        """The template whose height / width is nearest to `ratio`; of equals, the first."""
        return min(self.templates, key=lambda template: abs(template - ratio))

    def at_size(self, height: int, width: int) -> ScaleSchedule:
        """The schedule of a picture of height x width pixels.

        Raises:
            ValueError: When no schedule has that size; names the nearest that do.
        """
        sizes = self.all_pixels()
        if (height, width) in sizes:
            return self.schedule(*sizes[height, width])
        nearest = sorted(sizes, key=lambda size: math.dist(size, (height, width)))[:3]
        listed = ", ".join(f"{wide}x{high}" for high, wide in nearest)
        raise ValueError(
            f"No scale schedule draws {width}x{height} pixels (width x height); the nearest are {listed}."
        )

    def at_aspect(self, ratio: float, budget: str) -> ScaleSchedule:
        """The schedule nearest to a height / width, at a pixel budget."""
        return self.schedule(self.nearest_template(ratio), budget)
