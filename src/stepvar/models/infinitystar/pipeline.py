"""Text to video with InfinityStar; text to picture, picture to video, video to longer video."""

# No postponed annotations here: diffusers reads the component types off the constructor.

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from stepvar.generation.loop import plan_generation
from stepvar.generation.progress import Observer, Stopwatch
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.report import Summary
from stepvar.generation.sampling import BitSampler
from stepvar.models.common.t5 import encode_prompts
from stepvar.models.infinitystar.checkpoints import check_pair
from stepvar.models.infinitystar.conditioning import Footage, Picture, begin_continuation, encode_known
from stepvar.models.infinitystar.costs import memory_plan, scale_costs
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.output import (
    Decoding,
    VideoOutput,
    decode_frames,
    join_videos,
    merge_reports,
)
from stepvar.models.infinitystar.presets import PRESETS
from stepvar.models.infinitystar.request import VideoDefaults, VideoPlan, check_clips, plan_video
from stepvar.models.infinitystar.schedules import FRAMES_PER_LATENT, VideoScale, VideoSchedule
from stepvar.models.infinitystar.session import InfinityStarSession, KnownClips, TextPrefix
from stepvar.models.infinitystar.text import format_prompt
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import DECODER_CHUNK, InfinityStarVAE
from stepvar.models.pipeline import (
    NextScalePipeline,
    check_output_type,
    peak_memory,
    reset_peak_memory,
)
from stepvar.models.request import Inputs, PerScale, Request


@dataclass(frozen=True, kw_only=True)
class VideoRequest(Request):
    """A checked call, and in its course each video of it.

    Attributes:
        plan: What every video is like.
        text: The video's prompt.
        known: Clips that are given.
        before: What an interactive continuation goes on from.
    """

    plan: VideoPlan
    text: TextPrefix | None = None
    known: KnownClips | None = None
    before: Continuation | None = None


class InfinityStarPipeline(NextScalePipeline):
    """Draws videos and pictures from prompts.

    Args:
        transformer: Predicts bits.
        vae: The video tokenizer the transformer was trained with.
        text_encoder, tokenizer: T5's encoder and its tokenizer; may be left out when prompts come as
            embeddings.
        guidance_scale, guidance_threshold, temperature, picture_temperature, prompt_suffix, marks_duration:
            See `VideoDefaults`; None is what the published scripts use for the transformer's resolution.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.

    Source of the defaults: FoundationVision/InfinityStar, tools/infer_*.py.
    """

    draws_videos = True
    draws_previews = False
    remembers = False
    streams_layers = True
    presets = PRESETS
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        transformer: InfinityStarTransformer,
        vae: InfinityStarVAE,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guidance_scale: float | None = None,
        guidance_threshold: float | None = None,
        temperature: float | None = None,
        picture_temperature: float | None = None,
        prompt_suffix: str | None = None,
        marks_duration: bool | None = None,
    ) -> None:
        super().__init__()
        check_pair(transformer, vae)
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            guidance_scale=guidance_scale,
            guidance_threshold=guidance_threshold,
            temperature=temperature,
            picture_temperature=picture_temperature,
            prompt_suffix=prompt_suffix,
            marks_duration=marks_duration,
        )

    @property
    def defaults(self) -> VideoDefaults:
        """What a call uses where it says nothing."""
        return VideoDefaults.of(self.transformer.config.resolution, self.config)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        seconds: float | None = None,
        image: Picture | None = None,
        video: Footage | None = None,
        continuation: Continuation | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
        guidance_scale: PerScale | None = None,
        guidance_threshold: float | None = None,
        temperature: PerScale | None = None,
        top_k: int = 0,
        top_p: float = 0.0,
        posterior: str = "sample",
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        pruning: PruningMethod | str | None = None,
        prompt_embeds: Sequence[Tensor] | None = None,
        negative_prompt_embeds: Sequence[Tensor] | None = None,
        decode_chunk: int = DECODER_CHUNK,
        decode_tile: int | None = None,
        output_type: str = "pil",
        observer: Observer | None = None,
    ) -> VideoOutput:
        """Draws videos, one after the other.

        Args:
            prompt: One prompt, or several; put into the template of the published weights.
            seconds: Length of the whole video, what it begins with included; 0 is a picture. By default 5, or
                the longest where a video goes on.
            image: A picture to begin with: the first frame of every video.
            video: A video to go on from: its first seconds, which fill a clip.
            continuation: Of an earlier result, to go on interactively.
            negative_prompt: What to steer away from: one for all, or one a prompt.
            height, width: Pixels; must be a size of the model's scale schedules.
            aspect_ratio: Width / height, instead of a size; the nearest schedule is taken. By default that of
                the picture or video to begin with, or else 16:9.
            pixel_budget: The name of the model's resolution; no other can be asked for.
            guidance_scale: One number or one a step; 1 is off.
            guidance_threshold: Of projected guidance; 0 is plain classifier-free guidance.
            temperature: Divides the logits, one number or one a step.
            top_k: 1 takes the likelier bit; 0 and 2 or more change nothing.
            top_p: Drops the rarer value of a bit at probability <= 1 - top_p; 0 is off.
            posterior: How what a video begins with is encoded: a seeded "sample", or the "mean".
            seed: One a video, or one number s for s, s + 1, ...
            generator: One a video, instead of seeds.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            prompt_embeds: One [T_i, E] a prompt, instead of prompts.
            negative_prompt_embeds: One [T_i, E] a prompt, instead of negative prompts.
            decode_chunk: Latent frames decoded at a time: bounds memory, changes nothing else.
            decode_tile: Side in latent cells of the tiles that are decoded at a time, for devices short of
                memory; a quarter is shared with the neighbours. None decodes whole frames.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            observer: Hears of every step.

        Returns:
            The videos, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        check_output_type(output_type)
        decoding = Decoding(decode_chunk, decode_tile, output_type)
        features = (prompt_embeds, negative_prompt_embeds)
        inputs = Inputs.of_texts(prompt, negative_prompt, features, seed, generator)
        plan = plan_video(
            self.transformer.sizes,
            self.defaults,
            seconds=seconds,
            image=image,
            video=video,
            continuation=continuation,
            size=(height, width, aspect_ratio, pixel_budget),
            guidance_scale=guidance_scale,
            guidance_threshold=guidance_threshold,
            temperature=temperature,
            filters=(top_k, top_p),
            posterior=posterior,
        )
        plan.require_beginning()
        method = self._method(pruning, plan)
        request = VideoRequest(inputs, plan.schedule, plan.guidance, plan.sampling, method, plan=plan)
        return self._draw_all(request, decoding, observer)

    def summary(
        self,
        pruning: PruningMethod | str | None = None,
        *,
        seconds: float | None = None,
        image: Picture | None = None,
        video: Footage | None = None,
        known_seconds: float | None = None,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
        guidance_scale: PerScale | None = None,
        guidance_threshold: float | None = None,
        posterior: str = "sample",
        decode_chunk: int = DECODER_CHUNK,
        decode_tile: int | None = None,
        images: int = 1,
        text_tokens: int = 128,
    ) -> Summary:
        """What a call with these arguments will run: tokens, FLOPs and KV bytes a step, and the memory.

        Args:
            known_seconds: How much the video begins with, where it is not at hand: 0 for a picture; None for
                nothing.
            images: Videos; they are drawn one after the other, so only one of them is in memory.
            text_tokens: Length of a prompt in tokens.
            Others: As for `__call__`.

        Raises:
            ValueError: As `__call__` would.
        """
        decoding = Decoding(decode_chunk, decode_tile, "pil")
        plan = plan_video(
            self.transformer.sizes,
            self.defaults,
            seconds=seconds,
            image=image,
            video=video,
            known_seconds=known_seconds,
            size=(height, width, aspect_ratio, pixel_budget),
            guidance_scale=guidance_scale,
            guidance_threshold=guidance_threshold,
            posterior=posterior,
        )
        schedule, guidance, method = plan.schedule, plan.guidance, self._method(pruning, plan)
        prefix = [text_tokens, *plan.condition_tokens]
        told = self.summarise(
            method,
            schedule,
            guidance,
            1,
            lambda planned, rows: scale_costs(self.transformer, schedule, planned, rows, prefix, images),
        )
        parts, copies = (self.transformer, self.vae, self.text_encoder), 2 if guidance.active else 1
        tiling = (decoding.chunk, decoding.tile)
        return replace(told, memory=memory_plan(*parts, schedule, told.plan, copies, prefix, *tiling))

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

    def frames_of(self, scale: VideoScale) -> tuple[int, ...]:
        """The frames of a video that a step's maps stand for, the last one of each latent frame."""
        latents = range(scale.first_frame, scale.first_frame + scale.frames)
        return tuple(FRAMES_PER_LATENT * latent for latent in latents)

    def known_seconds(self, image: object | None, video: object | None) -> float | None:
        """What `summary` calls the beginning of a call with these arguments."""
        clip = self.transformer.sizes.clip_seconds
        return 0.0 if image is not None else clip if video is not None else None

    def _method(self, pruning: PruningMethod | str | None, plan: VideoPlan) -> PruningMethod | None:
        _check_length(pruning, plan.schedule, self.transformer.sizes.clip_seconds)
        method = self.plan_method(pruning, plan.schedule, plan.guidance)
        check_clips(plan.schedule, plan_generation(method, plan.schedule, len(self.transformer.blocks)))
        return method

    def check_prompts(
        self, prompts: Sequence[str], negatives: Sequence[str] = (), seconds: float | None = None
    ) -> None:
        """As for other models; what is added to a prompt counts too, and nothing is added to negative ones.

        Args:
            seconds: Of the video, which a prompt may tell; None counts the longest one.
        """
        seconds = self.transformer.sizes.longest if seconds is None else seconds
        style = (seconds, self.defaults.prompt_suffix, self.defaults.marks_duration)
        super().check_prompts([*(format_prompt(prompt, *style) for prompt in prompts), *negatives])

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        self.require_text_encoder()
        length, device = self.transformer.config.text_length, self._execution_device
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, length, device)

    def _texts(self, request: VideoRequest) -> list[TextPrefix]:
        """Text of every video, encoded as the published weights read it."""
        defaults, seconds = self.defaults, request.plan.seconds
        style = (seconds, defaults.prompt_suffix, defaults.marks_duration)
        prompts = [format_prompt(prompt, *style) for prompt in request.inputs.prompts]
        worded_request = replace(request, inputs=replace(request.inputs, prompts=prompts))
        positive, negative = self.features(worded_request)
        if not request.guidance.active:
            return [TextPrefix(text) for text in positive]
        if negative is None:
            self.load_to_device(self.transformer)
            blank, device = self.transformer.unconditional, self._execution_device
            negative = [blank(len(text), device) for text in positive]
        return [TextPrefix(*pair) for pair in zip(positive, negative, strict=True)]

    def _draw_all(self, request: VideoRequest, decoding: Decoding, observer: Observer | None) -> VideoOutput:
        """One video after the other, and one report of them all."""
        watch = Stopwatch(self._execution_device)
        watch.mark()
        texts, inputs = self._texts(request), request.inputs
        watch.mark()
        drawn = []
        for text, generator, seed in zip(texts, inputs.generators, inputs.seeds, strict=True):
            one = replace(inputs, generators=[generator], seeds=[seed])
            drawn.append(self._draw_one(replace(request, inputs=one, text=text), decoding, observer))
        self.maybe_free_model_hooks()
        report = merge_reports([one.report for one in drawn])
        report.stages["text"] += watch.seconds(0)
        report.settings = self.settings(request)
        return VideoOutput(
            frames=join_videos([one.frames for one in drawn], decoding.output_type),
            frames_per_second=self.transformer.sizes.frames_per_second,
            report=report,
            continuations=[after for one in drawn for after in one.continuations],
        )

    def _draw_one(self, request: VideoRequest, decoding: Decoding, observer: Observer | None) -> VideoOutput:
        device = self._execution_device
        reset_peak_memory(device)
        watch = Stopwatch(device)
        watch.mark()
        known, before = self._begin(request, device)
        watch.mark()
        session, report = self.run(replace(request, known=known, before=before), observer)
        watch.mark()
        latent = session.video()
        if decoding.output_type != "latent":
            self.load_to_device(self.vae)
        frames = decode_frames(self.vae, latent, before, decoding)
        watch.mark()
        report.stages["text"] += watch.seconds(0)
        report.stages["decode"] = watch.seconds(2)
        report.peak_bytes = peak_memory(device)
        after = [] if before is None else [before.after(latent)]
        return VideoOutput(frames, self.transformer.sizes.frames_per_second, report, after)

    def _begin(
        self, request: VideoRequest, device: torch.device
    ) -> tuple[KnownClips | None, Continuation | None]:
        """Encodes what the video begins with, or goes on from."""
        plan, (generator,) = request.plan, request.inputs.generators
        source = generator if plan.posterior == "sample" else None
        if plan.beginning is None:
            return None, plan.continuation
        self.load_to_device(self.vae)
        pixels = plan.beginning.pixels(*self.transformer.sizes.pixels(plan.schedule))
        if plan.known_schedule is None:
            return None, begin_continuation(self.vae, pixels, source, device)
        return encode_known(self.vae, pixels, plan.known_schedule, source, device), None

    def sampler(self, request: VideoRequest, device: torch.device) -> BitSampler:
        bits = [scale.bits for scale in request.schedule]
        return BitSampler(request.sampling, request.schedule, bits, request.inputs.generators, device)

    def start(self, request: VideoRequest, device: torch.device) -> InfinityStarSession:
        self.load_to_device(self.transformer)
        plan, conditions = request.plan, ()
        if request.before is not None:
            conditions = request.before.conditions(
                plan.semantic_grid, plan.first_position, plan.detail_frames
            )
        return InfinityStarSession(
            self.transformer, request.text, request.schedule, request.known, conditions, device
        )

    def pixels(self, schedule: VideoSchedule) -> tuple[int, int]:
        return self.transformer.sizes.pixels(schedule)

    def own_settings(self, request: VideoRequest) -> dict[str, Any]:
        return request.plan.settings


def _check_length(pruning: PruningMethod | str | None, schedule: VideoSchedule, clip_seconds: float) -> None:
    """Refuses a plan named after a length, such as "10s-1.4x", where fewer clips are drawn than it means.

    Its steps are counted from the end, so it would prune others, those of the first frame perhaps.

    Raises:
        ValueError: Saying what it is for.
    """
    named = re.match(r"(\d+)s-", pruning) if isinstance(pruning, str) else None
    if named is None:
        return
    drawn = len({scale.clip for scale in schedule if scale.clip and not scale.given})
    meant = math.ceil(int(named[1]) / clip_seconds)
    if drawn < meant:
        raise ValueError(
            f"The plan {pruning!r} prunes the {meant} clips of {named[1]} seconds, but {drawn} would run: "
            f"ask for {named[1]} seconds and no video to begin with, or for another plan such as 'paper'."
        )
