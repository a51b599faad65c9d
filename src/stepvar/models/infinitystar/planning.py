"""Plans of videos: the inputs of a call, checked and turned into a schedule before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stepvar.generation.guidance import Guidance, ProjectedGuidance
from stepvar.generation.sampling import SamplingSettings
from stepvar.media.pictures import Picture
from stepvar.models.infinitystar.conditioning import (
    ConditioningFrames,
    VideoInput,
    read_image,
    read_video_frames,
)
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.schedules import (
    FRAMES_PER_LATENT,
    PUBLISHED,
    Sides,
    VideoSchedule,
)
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.models.infinitystar.text import SUFFIX
from stepvar.models.request import (
    PerScale,
    check_aspect_ratio,
    check_filters,
    check_pixels,
    check_temperatures,
    numbers_per_scale,
    require_number,
)

Size = tuple[int | None, int | None, float | None, str | None]
"""Height, width, aspect ratio (width / height) and pixel budget, each as it was given."""

USUAL_SECONDS = 5.0
USUAL_RATIO = 9 / 16
POSTERIORS = ("sample", "mean")


@dataclass(frozen=True)
class VideoDefaults:
    """What the published scripts use.

    Attributes:
        guidance_scale: Weight of guidance.
        guidance_threshold: Of projected guidance; 0 is plain classifier-free guidance.
        temperature, picture_temperature: Of the clips, and of the first frame.
        prompt_suffix: Added to every prompt.
        marks_duration: Whether a prompt says how long the video lasts.

    Source: FoundationVision/InfinityStar (MIT), tools/infer_video_480p.py and infer_interact_480p.py.
    """

    guidance_scale: float
    guidance_threshold: float
    temperature: float
    picture_temperature: float
    prompt_suffix: str
    marks_duration: bool

    @classmethod
    def of(cls, resolution: str, own: Mapping[str, Any]) -> VideoDefaults:
        """The defaults of a resolution, but for what a pipeline has of its own."""
        published = resolution in PUBLISHED
        usual = cls(34.0, 0.05, 0.4, 1.0, SUFFIX if published else "", published)
        if resolution == "interact":
            usual = cls(3.0, 0.0, 0.5, 0.5, "", published)
        given = {name: own[name] for name in cls.__dataclass_fields__ if own.get(name) is not None}
        return replace(usual, **given)


@dataclass(frozen=True)
class VideoPlan:
    """What a checked call draws; nothing has been computed yet.

    Attributes:
        schedule: The steps to run.
        seconds: Length of the whole video; 0 is a picture.
        guidance, sampling: How values are drawn.
        posterior: "sample" or "mean".
        conditioning: What the video begins with, as pixels of any size.
        known_schedule: The schedule of exactly that; None where nothing is known, or of an interactive one.
        continuation: What an interactive continuation goes on from, when it is there already.
        scale_grids: Rows and columns of a clip's scales.
    """

    schedule: VideoSchedule
    seconds: float
    guidance: Guidance
    sampling: SamplingSettings
    posterior: str
    conditioning: ConditioningFrames | None
    known_schedule: VideoSchedule | None
    continuation: Continuation | None
    scale_grids: tuple[Sides, ...]

    @property
    def is_interactive(self) -> bool:
        return not self.schedule.continues

    @property
    def semantic_grid(self) -> Sides:
        """Rows and columns of the frames that an interactive step sees shrunk: the middle scale's."""
        return self.scale_grids[len(self.scale_grids) // 2]

    @property
    def detail_frames(self) -> tuple[int, int]:
        """Frames of the clip before that an interactive step sees in full: the last two."""
        frames = self.schedule[0].frames
        return frames - 2, frames - 1

    @property
    def first_position(self) -> int:
        return self.schedule[0].position

    @property
    def condition_tokens(self) -> tuple[int, ...]:
        """Tokens of what an interactive step sees."""
        if not self.is_interactive:
            return ()
        (rows, columns), (height, width) = self.semantic_grid, self.schedule.position_grid
        return self.schedule[0].frames * rows * columns, (1 + len(self.detail_frames)) * height * width

    @property
    def begins_with(self) -> str | None:
        if self.continuation is not None:
            return "continuation"
        if self.conditioning is None:
            return None
        return "video" if self.conditioning.is_video else "picture"

    @property
    def settings(self) -> dict[str, Any]:
        """What the video depends on, besides what pictures of all models do."""
        return {
            "seconds": self.seconds,
            "begins_with": self.begins_with,
            "guidance_threshold": getattr(self.guidance, "threshold", 0.0),
            "temperature": self.sampling.temperature,
            "top_k": self.sampling.top_k,
            "top_p": self.sampling.top_p,
            "posterior": self.posterior,
        }

    def require_conditioning(self) -> None:
        """Raises ValueError when an interactive continuation has nothing to go on from."""
        if self.is_interactive and self.begins_with is None:
            raise ValueError(
                "These weights continue videos: give a video to go on from, or the continuation of an "
                "earlier result."
            )


def plan_video(
    sizes: VideoSizes,
    defaults: VideoDefaults,
    *,
    seconds: float | None = None,
    image: Picture | None = None,
    video: VideoInput | None = None,
    continuation: Continuation | None = None,
    size: Size = (None, None, None, None),
    guidance_scale: PerScale | None = None,
    guidance_threshold: float | None = None,
    temperature: PerScale | None = None,
    filters: tuple[int, float] = (0, 0.0),
    posterior: str = "sample",
) -> VideoPlan:
    """Checks a call's inputs against what a model draws.

    Args:
        sizes: The sizes and lengths that the model draws.
        defaults: What is used where the call says nothing.
        size: Height, width, aspect ratio and pixel budget.
        filters: Top-k and top-p.
        Others: As for `InfinityStarPipeline.check`.

    Raises:
        ValueError: When an input is wrong, with what would work.
    """
    if sum(given is not None for given in (image, video, continuation)) > 1:
        raise ValueError("Give one thing to begin with: an image, a video or a continuation.")
    if posterior not in POSTERIORS:
        raise ValueError(f"Unknown posterior {posterior!r}; known are {', '.join(POSTERIORS)}.")
    interactive = sizes.name == "interact"
    if continuation is not None and not interactive:
        raise ValueError("Only weights for interactive continuation take a continuation; give a video.")
    conditioning = None
    if image is not None:
        conditioning = read_image(image)
    elif video is not None:
        rate, needed = sizes.frames_per_second, sizes.clip_seconds
        conditioning = read_video_frames(video, rate, needed, from_end=interactive)
    template = _template(sizes, size, conditioning, continuation)
    if interactive:
        steps = _interactive(sizes, template, seconds, conditioning, continuation)
    else:
        steps = _clips(sizes, template, seconds, conditioning)
    schedule, known_schedule, length, conditioning = steps
    return VideoPlan(
        schedule,
        length,
        _guidance(schedule, defaults, guidance_scale, guidance_threshold),
        _sampling(schedule, defaults, temperature, filters),
        posterior,
        conditioning,
        known_schedule,
        continuation,
        tuple(sizes.templates[template]),
    )


_Steps = tuple[VideoSchedule, VideoSchedule | None, float, ConditioningFrames | None]


def _clips(
    sizes: VideoSizes,
    template: float,
    seconds: float | None,
    conditioning: ConditioningFrames | None,
) -> _Steps:
    """The steps of a video, or of what is left of it after its beginning."""
    known_seconds = None
    if conditioning is not None:
        known_seconds = sizes.clip_seconds if conditioning.is_video else 0.0
    if seconds is None:
        seconds = sizes.longest if known_seconds else min(USUAL_SECONDS, sizes.longest)
    latents = sizes.latents(seconds)
    schedule = sizes.schedule(template, latents)
    if conditioning is None or known_seconds is None:
        return schedule, None, seconds, None
    known = sizes.latents(known_seconds)
    if latents <= known:
        what = f"the first {known_seconds:g} seconds" if known_seconds else "its first frame"
        longest = f"up to {sizes.longest:g}" if sizes.longest > known_seconds else "which this model has not"
        raise ValueError(
            f"A video of {seconds:g} seconds whose beginning is given ({what}) leaves nothing to draw: "
            f"ask for more seconds, {longest}."
        )
    if conditioning.is_video:
        conditioning = conditioning.spread(known_seconds, 1 + FRAMES_PER_LATENT * (known - 1))
    clips = 2 if known_seconds else 1
    return schedule.without_known(clips), sizes.schedule(template, known), seconds, conditioning


def _interactive(
    sizes: VideoSizes,
    template: float,
    seconds: float | None,
    conditioning: ConditioningFrames | None,
    continuation: Continuation | None,
) -> _Steps:
    """The steps of one more clip."""
    clip = sizes.clip_seconds
    if seconds not in (None, clip):
        raise ValueError(f"Interactive continuation draws {clip:g} seconds at a time, not {seconds:g}.")
    if conditioning is not None:
        if not conditioning.is_video:
            raise ValueError("These weights continue videos: give a video, not an image.")
        frames = 1 + FRAMES_PER_LATENT * sizes.settings.clip_frames
        conditioning = conditioning.spread(clip, frames, from_end=True)
    schedule = sizes.continuation(template)
    if continuation is not None:
        _require_fit(sizes, schedule, continuation)
    return schedule, None, clip, conditioning


def _require_fit(sizes: VideoSizes, schedule: VideoSchedule, continuation: Continuation) -> None:
    """Raises ValueError when a clip cannot follow the one before: latents are not resized as pictures are."""
    latents, rows, columns = continuation.former.shape[-3:]
    own = rows * sizes.pixels_per_cell, columns * sizes.pixels_per_cell
    asked, needed = sizes.pixels(schedule), 1 + schedule.latent_frames
    if own != asked:
        raise ValueError(
            f"The continuation is {own[1]}x{own[0]} pixels (width x height) and cannot go on at "
            f"{asked[1]}x{asked[0]}: leave the size out."
        )
    if latents != needed:
        raise ValueError(
            f"The continuation has {latents} latent frames, but these weights go on from {needed}: give the "
            "continuation of a result of theirs, or a video."
        )


def _template(
    sizes: VideoSizes, size: Size, conditioning: ConditioningFrames | None, continuation: Continuation | None
) -> float:
    height, width, aspect_ratio, budget = size
    check_pixels(height, width)
    if budget is not None and budget != sizes.name:
        raise ValueError(f"This model draws one resolution, {sizes.name}, not {budget!r}: leave it out.")
    if height is not None or width is not None:
        if aspect_ratio is not None:
            raise ValueError("Give height and width, or aspect_ratio, not both.")
        if height is None or width is None:
            raise ValueError("Give both height and width, in pixels.")
        return sizes.template_at_size(height, width)
    if aspect_ratio is not None:
        return sizes.nearest_template(1.0 / check_aspect_ratio(aspect_ratio))
    if continuation is not None:
        rows, columns = continuation.former.shape[-2:]
        return sizes.template_at_size(rows * sizes.pixels_per_cell, columns * sizes.pixels_per_cell)
    return sizes.nearest_template(USUAL_RATIO if conditioning is None else conditioning.ratio)


def _guidance(
    schedule: VideoSchedule, defaults: VideoDefaults, scale: PerScale | None, threshold: float | None
) -> Guidance:
    threshold = defaults.guidance_threshold if threshold is None else threshold
    if require_number(threshold, "guidance_threshold") < 0:
        raise ValueError(f"guidance_threshold is {threshold:g}; it must be 0 (off) or more.")
    value = defaults.guidance_scale if scale is None else scale
    weights = numbers_per_scale(value, len(schedule), "guidance_scale")
    return ProjectedGuidance(weights, threshold=threshold) if threshold else Guidance(weights)


def _sampling(
    schedule: VideoSchedule,
    defaults: VideoDefaults,
    temperature: PerScale | None,
    filters: tuple[int, float],
) -> SamplingSettings:
    check_filters(*filters)
    if temperature is not None:
        values = numbers_per_scale(temperature, len(schedule), "temperature")
        check_temperatures(values)
        return SamplingSettings(values, *filters)
    picture, clip = defaults.picture_temperature, defaults.temperature
    check_temperatures((picture,), "picture_temperature")
    check_temperatures((clip,))
    usual = tuple(clip if scale.clip or not schedule.continues else picture for scale in schedule)
    return SamplingSettings(usual, *filters)
