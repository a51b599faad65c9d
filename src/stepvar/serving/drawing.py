"""Pictures for the server: requests checked against the model, batches drawn, previews decoded."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stepvar.generation.report import Report
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.output import to_output
from stepvar.models.pipeline import NextScalePipeline
from stepvar.pruning.presets import Pruning

QUALITIES: dict[str, tuple[str, ...]] = {"lossless": ("none",), "high": ("faithful",), "fast": ("best",)}
"""Presets that a level of quality stands for; the first that the model has is taken, "none" is dense."""

_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


class Cancelled(Exception):
    """Every request of a batch has gone; what is left of it is not drawn."""


@dataclass(frozen=True)
class DrawSettings:
    """What pictures must share to be drawn as one batch.

    Attributes:
        size: Width and height in pixels; None is the model's own size.
        pruning: Name of a preset, or a plan; "none" is the dense run.
        guidance_scale: None is the model's own.
        has_negative: Whether the pictures have negative prompts.
        seconds: Length of a video; None is the model's own, and for models of pictures.
    """

    size: tuple[int, int] | None
    pruning: Pruning
    guidance_scale: float | None
    has_negative: bool
    seconds: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a pipeline's call."""
        arguments: dict[str, Any] = {"pruning": self.pruning}
        if self.size is not None:
            arguments["width"], arguments["height"] = self.size
        if self.guidance_scale is not None:
            arguments["guidance_scale"] = self.guidance_scale
        if self.seconds is not None:
            arguments["seconds"] = self.seconds
        return arguments


@dataclass(eq=False)
class Job:
    """One picture to draw.

    Attributes:
        prompt, negative: Texts.
        seed: Of the picture.
        settings: What it must share with others of its batch.
        previews: Indices of scales after which a preview is wanted.
        on_preview: Called with the number of a preview and the picture, on the drawing thread.
        on_scale: Called with the index of every scale that has run, likewise, before its preview.
        cancelled: Set when its client has gone.
    """

    prompt: str
    negative: str | None
    seed: int
    settings: DrawSettings
    previews: frozenset[int] = frozenset()
    on_preview: Callable[[int, Image.Image], None] | None = None
    on_scale: Callable[[int], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Drawn:
    """A finished picture, or video.

    Attributes:
        image: The picture; of a video the first frame.
        report: How its batch ran, without the sampled values.
        frames: Of a video.
        frames_per_second: Of a video.
    """

    image: Image.Image
    report: Report
    frames: tuple[Image.Image, ...] = ()
    frames_per_second: float = 0.0

    @property
    def tokens(self) -> int:
        """Image tokens that were computed for it."""
        return self.report.kept_tokens


class Drawer:
    """A pipeline as the server uses it; `draw` is called on one thread only.

    Args:
        pipeline: Draws pictures from texts.
        exact: Whether a picture must not depend on those it waited with; see `ServerSettings`.

    """

    def __init__(self, pipeline: NextScalePipeline[Any], exact: bool = True) -> None:
        self.pipeline, self.exact = pipeline, exact
        pipeline.set_progress_bar_config(disable=True)
        self.levels = self._levels()
        schedule = pipeline.schedule()
        height, width = pipeline.pixels(schedule)
        self.own_size = (width, height)

    def require_pictures(self) -> None:
        """Raises ValueError when the model draws videos, or needs a picture to edit with every prompt."""
        self.pipeline.require_prompts_alone("The server")
        if self.pipeline.draws_videos:
            raise ValueError(
                f"{type(self.pipeline).__name__} draws videos, and the images routes serve pictures: "
                "serve a model of pictures, or open it with 'stepvar ui'."
            )

    def _levels(self) -> dict[str, str]:
        """Preset of every level of quality that the model can give."""
        known = {"none", *self.pipeline.presets}
        levels = {}
        for level, presets in QUALITIES.items():
            found = [preset for preset in presets if preset in known]
            if found:
                levels[level] = found[0]
        return levels

    def scales(self, settings: DrawSettings) -> int:
        """Number of scales of a size.

        Raises:
            ValueError: When the model does not draw the size.
        """
        return len(self.schedule(settings))

    def schedule(self, settings: DrawSettings) -> ScaleSchedule:
        """The scales of a size, and of a video's length.

        Raises:
            ValueError: When the model does not draw the size.
        """
        schedule: Callable[..., ScaleSchedule] = self.pipeline.schedule
        arguments: dict[str, Any] = {} if settings.seconds is None else {"seconds": settings.seconds}
        if settings.size is not None:
            arguments["width"], arguments["height"] = settings.size
        return schedule(**arguments)

    def check(self, job: Job) -> None:
        """Finds out what is wrong with a job before it waits.

        Raises:
            ValueError: One sentence that says what.
        """
        negatives = [job.negative] if job.negative else []
        self.pipeline.check_prompts([job.prompt], negatives, job.settings.seconds)
        self.pipeline.summary(**job.settings.arguments())

    def text_tokens(self, prompt: str) -> int:
        """Tokens of a prompt as the model reads it; 1 for a class."""
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        return 1 if tokenizer is None else len(tokenizer(prompt, verbose=False).input_ids)

    def draw(self, jobs: Sequence[Job]) -> list[Drawn | None]:
        """Draws jobs of equal settings: one picture a job, None for one that was cancelled meanwhile.

        Raises:
            Cancelled: When all of them were.
        """
        if not self.exact:
            return list(self._draw_together(jobs))
        drawn = [self._draw_alone(job) for job in jobs]
        if not any(drawn):
            raise Cancelled
        return drawn

    def _draw_alone(self, job: Job) -> Drawn | None:
        try:
            return None if job.cancelled.is_set() else self._draw_together([job])[0]
        except Cancelled:
            return None

    @torch.no_grad()
    def _draw_together(self, jobs: Sequence[Job]) -> list[Drawn]:
        settings = jobs[0].settings
        arguments = settings.arguments()
        if settings.has_negative:
            arguments["negative_prompt"] = [job.negative for job in jobs]
        output = self.pipeline(
            [job.prompt for job in jobs],
            seed=[job.seed for job in jobs],
            callback_on_step_end=_ScaleCallback(jobs, self._preview),
            **arguments,
        )
        report = replace(output.report, choices={})
        if not self.pipeline.draws_videos:
            return [Drawn(image, report) for image in output.images]
        return [Drawn(frames[0], report, tuple(frames), output.frames_per_second) for frames in output.frames]

    def _preview(self, latents: Tensor) -> list[Image.Image]:
        images = to_output(self.pipeline.preview(latents), "pil")
        assert isinstance(images, list), "pictures were asked for"
        return images


class _ScaleCallback:
    """Called after every scale: sends previews, and stops a batch that nobody waits for.

    Args:
        jobs: Of the batch.
        preview: Decodes accumulated codes.
    """

    def __init__(self, jobs: Sequence[Job], preview: Callable[[Tensor], list[Image.Image]]) -> None:
        self.jobs, self.preview = jobs, preview

    def __call__(
        self, pipeline: Any, step: int, timestep: Any, values: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if all(job.cancelled.is_set() for job in self.jobs):
            raise Cancelled
        for job in self.jobs:
            if job.on_scale is not None:
                job.on_scale(step)
        wanted = [index for index, job in enumerate(self.jobs) if step in job.previews]
        if wanted:
            images = self.preview(values["latents"][wanted])
            for index, image in zip(wanted, images, strict=True):
                job = self.jobs[index]
                if job.on_preview is not None:
                    job.on_preview(sorted(job.previews).index(step), image)
        return {}


def preview_steps(scales: int, count: int) -> frozenset[int]:
    """Scales after which to send previews: the last `count` before the final one, which is the picture."""
    return frozenset(range(max(scales - 1 - count, 0), scales - 1)) if count else frozenset()


def encode(image: Image.Image, output_format: str, compression: int) -> bytes:
    """A picture as a file.

    Args:
        output_format: png, jpeg or webp.
        compression: Quality of the lossy formats in percent.
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if output_format == "png" else {"quality": compression}
    image.save(buffer, _FORMATS[output_format], **options)
    return buffer.getvalue()
