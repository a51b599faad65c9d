"""Scale schedules of InfinityStar: every forward step of a picture or a clip.

Source of the tables: FoundationVision/InfinityStar (MIT), infinity/schedules/dynamic_resolution.py,
infinity/schedules/infinity_elegant.py and tools/infer_*.py.

A video is a list of clips: clip 0 is one latent frame, every later clip has up to 20. Each is drawn by the
same pyramid of grids, and a grid is drawn several times over ("repetitions"). The schedule lists every
repetition as a step of its own. One latent cell is 16 x 16 pixels, and 4 frames (the first one 1 frame).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from stepvar.generation.schedule import Scale, ScaleSchedule

Sides = tuple[int, int]

PIXELS_PER_CELL = 16
FRAMES_PER_LATENT = 4
FRAMES_PER_SECOND = 16

_SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 40, 60)
"""Side of the square grid of each scale; other shapes have the same area, nearly."""

_RATIOS = (1.0, 100 / 116, 3 / 4, 2 / 3, 9 / 16, 1 / 2, 2 / 5, 1 / 3)
"""Height / width of the wide templates; the tall ones are their mirror images."""

BUDGETS: dict[str, int] = {"0.06M": 11, "0.25M": 13, "0.40M": 14, "0.90M": 15}
"""How many scales of a template each pixel budget runs; 0.40M is called 480p, 0.90M 720p."""


@dataclass(frozen=True)
class VideoScale(Scale):
    """One forward step of a clip.

    Attributes:
        clip: Which clip it draws, counted from 0.
        repetition: How many steps drew the same grid of the same clip before.
        position: Step number that rotary positions count, all repetitions since the start.
        first_frame: Latent frame of the whole video where the clip begins.
        bits: Bits a token predicts: 16 of the coarse code book, 64 of the fine one.
        ends_clip: Whether it is the last step of its clip, whose keys and values the next clip sees.
        given: Whether what it draws is known already, and only its keys and values are wanted.
    """

    clip: int = 0
    repetition: int = 0
    position: int = 0
    first_frame: int = 0
    bits: int = 16
    ends_clip: bool = False
    given: bool = False

    def __str__(self) -> str:
        name = super().__str__()
        name = f"{name} clip {self.clip}" if self.clip else name
        return f"{name} #{self.repetition + 1}" if self.repetition else name


@dataclass(frozen=True)
class VideoSchedule(ScaleSchedule):
    """All steps of a generation, and which of them a step sees.

    Attributes:
        continues: Whether the steps see the clip before, and so whether clip 0 is a single picture; the
            interactive continuation draws one clip that sees its conditions only.
    """

    scales: tuple[VideoScale, ...]
    continues: bool = True

    def __iter__(self) -> Iterator[VideoScale]:
        return iter(self.scales)

    def __getitem__(self, index: int) -> VideoScale:  # type: ignore[override]  # slices are not needed
        return self.scales[index]

    @property
    def clips(self) -> tuple[int, ...]:
        """Latent frames of each clip that is drawn or given, in order."""
        frames = {scale.clip: scale.frames for scale in self.scales}
        return tuple(frames.values())

    @property
    def latent_frames(self) -> int:
        return sum(self.clips)

    def last_step(self, index: int, ran: Sequence[bool] | None = None) -> int:
        """Last step that sees the keys and values of step `index`: itself, when nobody does.

        A clip's steps see the last step of the clip before; where that one is skipped, the last that ran.

        Args:
            ran: Whether each step runs; all do by default.
        """
        clip = self.scales[index].clip
        later = [step.index for step in self.scales if step.clip == clip and step.index > index]
        if not self.continues or any(ran is None or ran[step] for step in later):
            return index
        return max((step.index for step in self.scales if step.clip == clip + 1), default=index)

    def without_known(self, clips: int) -> VideoSchedule:
        """The same schedule when the first clips are known: of each of them, only the last step still runs.

        Nothing else of a known clip influences the rest: a clip sees one step of the clip before it. That
        step in turn saw one of the clip before its own, so all known clips need theirs.

        Raises:
            ValueError: When no clip would be left to draw.
        """
        if not 0 < clips < len(self.clips):
            raise ValueError(f"{clips} of {len(self.clips)} clips are known: at least one must be drawn.")
        kept = [
            replace(scale, given=scale.clip < clips)
            for scale in self.scales
            if scale.clip >= clips or scale.ends_clip
        ]
        steps = tuple(replace(scale, index=index) for index, scale in enumerate(kept))
        return replace(self, scales=steps)


@dataclass(frozen=True)
class PyramidSettings:
    """How the scales of a template are drawn.

    Attributes:
        semantic_scales: How many scales of a clip use the coarse code book of 16 bits; None where cells tell.
        detail_minimum: Cells of a grid from which on the fine code book is used; agrees with
            `semantic_scales` on every published template. None where places tell.
        image_repetitions, video_repetitions: Steps of each scale, in the first clip and in later ones.
        clip_frames: Latent frames of a later clip.
        most_repetitions: Cuts the repetitions of every scale; rotary positions stay as without.
        semantic_bits, detail_bits: Bits a token predicts.
        text_length: Rotary step number of the first visual step.
    """

    semantic_scales: int | None
    detail_minimum: int | None
    image_repetitions: tuple[int, ...]
    video_repetitions: tuple[int, ...]
    clip_frames: int = 20
    most_repetitions: int | None = None
    semantic_bits: int = 16
    detail_bits: int = 64
    text_length: int = 512

    def build(self, grids: Sequence[Sides], latent_frames: int) -> VideoSchedule:
        """The schedule of `latent_frames` frames: a picture, then clips; the last clip may be shorter.

        Raises:
            ValueError: When repetitions are missing, or the two rules for the code book disagree.
        """
        later = -(-(latent_frames - 1) // self.clip_frames)
        clips = [1] + [min(self.clip_frames, latent_frames - 1 - self.clip_frames * i) for i in range(later)]
        return self.build_clips([grids] * len(clips), clips)

    def build_continuation(self, grids: Sequence[Sides], latent_frames: int) -> VideoSchedule:
        """The schedule of one clip that sees only its conditions (interactive continuation)."""
        return replace(self.build_clips([grids], [latent_frames]), continues=False)

    def build_clips(self, grids: Sequence[Sequence[Sides]], clips: Sequence[int]) -> VideoSchedule:
        """The schedule of any clips.

        Args:
            grids: Rows and columns of each clip's scales.
            clips: Latent frames of each clip.
        """
        steps: list[VideoScale] = []
        position = self.text_length
        for clip, frames in enumerate(clips):
            repetitions = self.video_repetitions if clip else self.image_repetitions
            # Counted in whole clips, also where one before was shorter.
            first_frame = clips[0] + (clip - 1) * self.clip_frames if clip else 0
            if len(repetitions) < len(grids[clip]):
                raise ValueError(f"There are {len(repetitions)} repetitions for {len(grids[clip])} scales.")
            for place, (height, width) in enumerate(grids[clip]):
                bits = self.bits(place, height * width)
                for repetition in range(min(repetitions[place], self.most_repetitions or repetitions[place])):
                    steps.append(
                        VideoScale(
                            index=len(steps),
                            height=height,
                            width=width,
                            frames=frames,
                            clip=clip,
                            repetition=repetition,
                            position=position + repetition,
                            first_frame=first_frame,
                            bits=bits,
                        )
                    )
                position += repetitions[place]
            steps[-1] = replace(steps[-1], ends_clip=True)
        return VideoSchedule(tuple(steps), grids[0][-1])

    def bits(self, place: int, cells: int) -> int:
        """Bits a token predicts at the scale with this place in its clip and this many cells a frame.

        Raises:
            ValueError: When the head, chosen by place, and the code book, by cells, do not match.
        """
        by_place = self.semantic_scales is not None and place < self.semantic_scales
        by_cells = self.detail_minimum is not None and cells < self.detail_minimum
        is_listed = None not in (self.semantic_scales, self.detail_minimum)
        if is_listed and by_place != by_cells:
            raise ValueError(
                f"Scale {place} of {cells} cells a frame would be predicted with "
                f"{self.semantic_bits if by_place else self.detail_bits} bits and stored with "
                f"{self.semantic_bits if by_cells else self.detail_bits}: "
                "semantic_scales and detail_minimum disagree."
            )
        return self.semantic_bits if by_place or by_cells else self.detail_bits


@cache
def published_templates() -> Mapping[float, tuple[Sides, ...]]:
    """Grids of all 15 scales by height / width, as the official tables name it (cut to three digits)."""
    templates: dict[float, tuple[Sides, ...]] = {}
    for ratio in _RATIOS:
        wide = tuple(_grid(side, ratio) for side in _SIDES)
        for grids in (wide, tuple((width, height) for height, width in wide)):
            height, width = grids[-1]
            templates[math.floor(1000 * height / width) / 1000] = grids
    return templates


def _grid(side: int, ratio: float) -> Sides:
    """Rows and columns of about side x side cells with rows / columns near `ratio` (half to even)."""
    width = math.sqrt(side * side / ratio)
    return round(width * ratio), round(width)


PUBLISHED: dict[str, tuple[str, PyramidSettings]] = {
    "480p": ("0.40M", PyramidSettings(11, 350, (3,) * 14, (3,) * 12 + (2, 1))),
    "720p": ("0.90M", PyramidSettings(12, 750, (3,) * 15, (3,) * 12 + (2, 1, 1))),
    "interact": ("0.40M", PyramidSettings(11, 350, (3,) * 12 + (2, 1), (3,) * 12 + (2, 1))),
}
"""Pixel budget and settings of the three published transformers."""
