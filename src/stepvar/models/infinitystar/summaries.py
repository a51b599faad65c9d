"""Plans of InfinityStar before they run: schedules, costs and the memory that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import ScaleCost, Summary
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.infinitystar.costs import memory_plan, scale_costs
from stepvar.models.infinitystar.planning import VideoDefaults, plan_video
from stepvar.models.infinitystar.request import VideoRequest, blank_conditioning
from stepvar.models.infinitystar.schedules import FRAMES_PER_LATENT, VideoScale, VideoSchedule
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.models.pipeline import NextScalePipeline
from stepvar.pruning.presets import Pruning


class PlannedVideos(NextScalePipeline[VideoRequest]):
    """The part of the pipeline that computes nothing: what a call would run, and what that costs."""

    transformer: InfinityStarTransformer
    vae: InfinityStarVAE

    @property
    def defaults(self) -> VideoDefaults:
        """What a call uses where it says nothing."""
        return VideoDefaults.of(self.transformer.config.resolution, self.config)

    def summary(
        self,
        pruning: Pruning = None,
        *,
        images: int | None = None,
        text_tokens: int | None = None,
        known_seconds: float | None = None,
        **call: Any,
    ) -> Summary:
        """What a call with these arguments will run: tokens, FLOPs and KV bytes a step, and the memory.

        Args:
            pruning: As in a call.
            images: Videos; they are drawn one after the other, so only one of them is in memory.
            text_tokens: Tokens of a prompt; by default `usual_text_tokens`.
            known_seconds: How much the video begins with, where it is not at hand: 0 for a picture.
            call: Further arguments of a call. Those that only change what is sampled change nothing here.

        Raises:
            ValueError: As the call would.
        """
        sizes = self.transformer.sizes
        begins = any(call.get(name) is not None for name in ("image", "video", "continuation"))
        if known_seconds is None and sizes.name == "interact" and not begins:
            known_seconds = sizes.clip_seconds
        if known_seconds is not None and not begins:
            call |= blank_conditioning(sizes, known_seconds)
        return super().summary(pruning, images=images, text_tokens=text_tokens, **call)

    def summarise(self, request: VideoRequest, images: int, text_tokens: int) -> Summary:
        """As for other models, one video after the other; with the memory that one needs."""
        whole = super().summarise(replace(request, videos=images), 1, text_tokens)
        memory = memory_plan(
            self.transformer,
            self.vae,
            self.text_encoder,
            request.plan.schedule,
            whole.plan,
            2 if request.guidance.active else 1,
            [text_tokens, *request.plan.condition_tokens],
            request.decoding.chunk,
            request.decoding.tile,
        )
        return replace(whole, memory=memory)

    def scale_costs(
        self, request: VideoRequest, plan: GenerationPlan, rows: Sequence[int], images: int, text_tokens: int
    ) -> tuple[ScaleCost, ...]:
        prefix = [text_tokens, *request.plan.condition_tokens]
        return scale_costs(self.transformer, request.plan.schedule, plan, rows, prefix, request.videos)

    def schedule(
        self,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
        seconds: float | None = None,
    ) -> VideoSchedule:
        """The scale schedule of a size or an aspect ratio, and a length; ValueError when there is none."""
        size = (height, width, aspect_ratio, pixel_budget)
        return plan_video(self.transformer.sizes, self.defaults, seconds=seconds, size=size).schedule

    def pixels(self, schedule: ScaleSchedule) -> tuple[int, int]:
        return self.transformer.sizes.pixels(schedule)

    def frames_of(self, scale: Scale) -> tuple[int, ...]:
        """The frames of a video that a step's maps stand for, the last one of each latent frame."""
        first = scale.first_frame if isinstance(scale, VideoScale) else 0
        latents = range(first, first + scale.frames)
        return tuple(FRAMES_PER_LATENT * latent for latent in latents)
