"""Sizes and lengths of the videos that a model draws.

Source of the published ones: FoundationVision/InfinityStar (MIT), tools/infer_video_480p.py,
tools/infer_video_720p.py and tools/infer_interact_480p.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinitystar.schedules import (
    BUDGETS,
    FRAMES_PER_LATENT,
    FRAMES_PER_SECOND,
    PIXELS_PER_CELL,
    PUBLISHED,
    PyramidSettings,
    Sides,
    VideoSchedule,
    published_templates,
)


@dataclass(frozen=True)
class VideoSizes:
    """The sizes and lengths of a model.

    Attributes:
        templates: Grids of the scales by height / width.
        settings: How the scales are drawn.
        longest: Most seconds of a video.
        latents_per_second: Latent frames of a second.
        name: What the sizes are called, such as "480p".
        pixels_per_cell: Side in pixels of a latent cell.
    """

    templates: Mapping[float, Sequence[Sides]]
    settings: PyramidSettings
    longest: float
    latents_per_second: int = FRAMES_PER_SECOND // FRAMES_PER_LATENT
    name: str = "480p"
    pixels_per_cell: int = PIXELS_PER_CELL

    @classmethod
    def published(cls, resolution: str) -> VideoSizes:
        """The 15 aspect ratios at a published resolution: up to 10 seconds at 480p, 5 at 720p.

        Raises:
            ValueError: When there is no such resolution.
        """
        if resolution not in PUBLISHED:
            raise ValueError(f"Unknown resolution {resolution!r}; known are {', '.join(PUBLISHED)}.")
        budget, settings = PUBLISHED[resolution]
        templates = {ratio: grids[: BUDGETS[budget]] for ratio, grids in published_templates().items()}
        return cls(templates, settings, longest=10.0 if resolution == "480p" else 5.0, name=resolution)

    @property
    def frames_per_second(self) -> int:
        return self.latents_per_second * FRAMES_PER_LATENT

    @property
    def clip_seconds(self) -> float:
        """Seconds of a clip after the first frame."""
        return self.settings.clip_frames / self.latents_per_second

    def frames(self, schedule: VideoSchedule) -> int:
        """Frames of a schedule's video."""
        return 1 + FRAMES_PER_LATENT * (schedule.latent_frames - 1)

    def pixels(self, schedule: ScaleSchedule) -> Sides:
        """Height and width in pixels of a schedule's frames."""
        height, width = schedule.position_grid
        return height * self.pixels_per_cell, width * self.pixels_per_cell

    def all_pixels(self) -> dict[Sides, float]:
        """Every (height, width) in pixels, with its template."""
        return {
            (grids[-1][0] * self.pixels_per_cell, grids[-1][1] * self.pixels_per_cell): template
            for template, grids in self.templates.items()
        }

    def template_at_size(self, height: int, width: int) -> float:
        """The template of frames of height x width pixels.

        Raises:
            ValueError: When there is none; names the nearest that there are.
        """
        sizes = self.all_pixels()
        if (height, width) in sizes:
            return sizes[height, width]
        nearest = sorted(sizes, key=lambda size: math.dist(size, (height, width)))[:3]
        listed = ", ".join(f"{wide}x{high}" for high, wide in nearest)
        raise ValueError(
            f"No scale schedule draws {width}x{height} pixels (width x height); the nearest are {listed}."
        )

    def nearest_template(self, ratio: float) -> float:
        """The template whose height / width is nearest to `ratio`; of equals, the first."""
        return min(self.templates, key=lambda template: abs(template - ratio))

    def latents(self, seconds: float) -> int:
        """Latent frames of a video of whole seconds, or of a picture (0 seconds).

        Raises:
            ValueError: When the schedules do not have that length.
        """
        known = [0, *range(1, int(self.longest) + 1)]
        if seconds not in known:
            raise ValueError(
                f"No scale schedule draws {seconds:g} seconds: take whole seconds from 1 to {known[-1]}, "
                "or 0 for a picture."
            )
        return 1 + int(seconds) * self.latents_per_second

    def schedule(self, template: float, latent_frames: int) -> VideoSchedule:
        """The schedule of a template and a number of latent frames."""
        return self.settings.build(list(self.templates[template]), latent_frames)

    def continuation(self, template: float) -> VideoSchedule:
        """The schedule of one clip that continues another one interactively."""
        return self.settings.build_continuation(list(self.templates[template]), self.settings.clip_frames)
