"""Text to video with InfinityStar; text to picture, picture to video, video to longer video."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from stepvar.generation.loop import generate, plan_generation
from stepvar.generation.progress import Observer, Stopwatch
from stepvar.generation.report import Report, Summary
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.models.infinity.text import encode_prompts
from stepvar.models.infinitystar.checkpoints import check_pair
from stepvar.models.infinitystar.conditioning import Footage, Picture, begin_continuation, encode_known
from stepvar.models.infinitystar.cost import memory_plan, scale_costs
from stepvar.models.infinitystar.frames import collect
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.output import VideoOutput, join_videos, merge_reports
from stepvar.models.infinitystar.request import Request, VideoDefaults, check_clips, plan_request
from stepvar.models.infinitystar.schedules import VideoSchedule
from stepvar.models.infinitystar.session import InfinityStarSession, KnownClips, TextPrefix
from stepvar.models.infinitystar.text import worded
from stepvar.models.infinitystar.tokenizer import DECODER_CHUNK, InfinityStarTokenizer
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.pipeline import (
    OUTPUT_TYPES,
    NextScalePipeline,
    as_prompts,
    bring_in,
    make_generators,
    peak_memory,
    reset_peak_memory,
    rows_per_scale,
)
from stepvar.pruning.base import PruningMethod

PerStep = float | Sequence[float]


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
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        transformer: InfinityStarTransformer,
        vae: InfinityStarTokenizer,
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
    def remembers(self) -> bool:
        return False

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
        guidance_scale: PerStep | None = None,
        guidance_threshold: float | None = None,
        temperature: PerStep | None = None,
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
            prompt: One prompt, or several; worded as the published weights read them.
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
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"Unknown output_type {output_type!r}; known are {', '.join(OUTPUT_TYPES)}.")
        if decode_chunk < 1 or (decode_tile is not None and decode_tile < 2):
            raise ValueError("decode_chunk must be 1 latent frame or more, decode_tile 2 cells or more.")
        prompts = [""] * len(prompt_embeds) if prompt_embeds is not None else as_prompts(prompt or "")
        request = plan_request(
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
        request.require_beginning()
        method = self._method(pruning, request)
        negatives = self._negatives(negative_prompt, len(prompts))
        generators, seeds = make_generators(len(prompts), seed, generator)
        watch = Stopwatch(self._execution_device)
        watch.mark()
        texts = self._texts(prompts, negatives, request, prompt_embeds, negative_prompt_embeds)
        watch.mark()
        decoding = (decode_chunk, decode_tile)
        drawn = [
            self._draw(request, method, text, own, number, decoding, output_type, observer)
            for text, own, number in zip(texts, generators, seeds, strict=True)
        ]
        self.maybe_free_model_hooks()
        report = merge_reports([one.report for one in drawn])
        report.stages["text"] += watch.seconds(0)
        report.settings = {
            "model": self.origin,
            "prompts": prompts,
            "negative_prompts": negatives,
            **request.describe(method),
            "dtype": str(self.transformer.compute_dtype).removeprefix("torch."),
        }
        return VideoOutput(
            frames=join_videos([one.frames for one in drawn], output_type),
            frames_per_second=self.transformer.sizes.frames_per_second,
            report=report,
            continuations=[after for one in drawn for after in one.continuations],
        )

    def summary(
        self,
        pruning: PruningMethod | str | None = None,
        *,
        seconds: float | None = None,
        known_seconds: float | None = None,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
        guidance_scale: PerStep | None = None,
        images: int = 1,
        text_tokens: int = 128,
    ) -> Summary:
        """What a call with these arguments will run: tokens, FLOPs and KV bytes a step, and the memory.

        Args:
            known_seconds: How much the video begins with: 0 for a picture; None for nothing.
            images: Videos; they are drawn one after the other.
            text_tokens: Length of a prompt in tokens.

        Raises:
            ValueError: As `__call__` would.
        """
        request = plan_request(
            self.transformer.sizes,
            self.defaults,
            seconds=seconds,
            known_seconds=known_seconds,
            size=(height, width, aspect_ratio, pixel_budget),
            guidance_scale=guidance_scale,
        )
        schedule, depth = request.schedule, len(self.transformer.blocks)
        method = self._method(pruning, request)
        copies = 2 if request.guidance.active else 1
        prefix = [text_tokens, *request.condition_tokens]
        plan, dense = plan_generation(method, schedule, depth), plan_generation(None, schedule, depth)
        rows, dense_rows = (
            [images * row for row in rows_per_scale(request.guidance, 1, copies, one)]
            for one in (plan, dense)
        )
        parts = (self.transformer, self.vae, self.text_encoder)
        return Summary(
            plan,
            scale_costs(self.transformer, schedule, plan, rows, prefix),
            scale_costs(self.transformer, schedule, dense, dense_rows, prefix),
            memory=memory_plan(*parts, schedule, plan, copies, prefix),
        )

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
        return plan_request(self.transformer.sizes, self.defaults, seconds=seconds, size=size).schedule

    def known_seconds(self, image: object | None, video: object | None) -> float | None:
        """What `summary` calls the beginning of a call with these arguments."""
        clip = self.transformer.sizes.clip_seconds
        return 0.0 if image is not None else clip if video is not None else None

    def _method(self, pruning: PruningMethod | str | None, request: Request) -> PruningMethod | None:
        method = self.plan_method(pruning, request.schedule, request.guidance)
        check_clips(request.schedule, plan_generation(method, request.schedule, len(self.transformer.blocks)))
        return method

    def _texts(
        self,
        prompts: list[str],
        negatives: list[str] | None,
        request: Request,
        embeds: Sequence[Tensor] | None,
        negative_embeds: Sequence[Tensor] | None,
    ) -> list[TextPrefix]:
        """Text of every video, encoded."""
        if embeds is None:
            style = (request.seconds, self.defaults.prompt_suffix, self.defaults.marks_duration)
            embeds = self._encode([worded(prompt, *style) for prompt in prompts])
        if not request.guidance.active:
            return [TextPrefix(text) for text in embeds]
        if negative_embeds is None and negatives:
            negative_embeds = self._encode(negatives)
        if negative_embeds is None:
            bring_in(self.transformer)
            blank, device = self.transformer.unconditional, self._execution_device
            return [TextPrefix(text, blank(len(text), device)) for text in embeds]
        if len(negative_embeds) != len(embeds):
            raise ValueError(f"{len(embeds)} prompts need as many negatives; got {len(negative_embeds)}.")
        return [TextPrefix(*pair) for pair in zip(embeds, negative_embeds, strict=True)]

    def _negatives(self, negative: str | Sequence[str] | None, prompts: int) -> list[str] | None:
        if not negative:
            return None
        negatives = as_prompts(negative, "negative prompt")
        negatives = negatives * prompts if len(negatives) == 1 else negatives
        if len(negatives) != prompts:
            raise ValueError(
                f"{prompts} prompts need one negative prompt, or {prompts}; got {len(negatives)}."
            )
        return negatives

    def _encode(self, prompts: Sequence[str]) -> list[Tensor]:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("This pipeline has no text encoder: pass prompt_embeds, or load one.")
        length = self.transformer.config.text_length
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, length, self._execution_device)

    def _draw(
        self,
        request: Request,
        method: PruningMethod | None,
        text: TextPrefix,
        generator: torch.Generator,
        seed: int | None,
        decoding: tuple[int, int | None],
        output_type: str,
        observer: Observer | None,
    ) -> VideoOutput:
        """One video."""
        device = self._execution_device
        reset_peak_memory(device)
        watch = Stopwatch(device)
        watch.mark()
        known, before = self._begin(request, generator, device)
        watch.mark()
        bring_in(self.transformer)
        conditions = ()
        if before is not None:
            conditions = before.conditions(
                request.semantic_grid, request.first_position, request.detail_frames
            )
        session = InfinityStarSession(self.transformer, text, request.schedule, known, conditions, device)
        settings = SamplingSettings(request.temperatures, *request.filters)
        bits = [scale.bits for scale in request.schedule]
        sampler = BitSampler(settings, request.schedule, bits, [generator], device)
        result = generate(
            session, guidance=request.guidance, sampler=sampler, pruning=method, observer=observer
        )
        watch.mark()
        latent = session.video()
        frames = self._decode(latent, before, request, decoding, output_type)
        watch.mark()
        stages = {name: watch.seconds(index) for index, name in enumerate(("text", "scales", "decode"))}
        report = Report(
            result.scales, stages, result.cache_bytes, peak_memory(device), [seed], choices=result.choices
        )
        after = [] if before is None else [before.after(latent)]
        return VideoOutput(frames, self.transformer.sizes.frames_per_second, report, after)

    def _begin(
        self, request: Request, generator: torch.Generator, device: torch.device
    ) -> tuple[KnownClips | None, Continuation | None]:
        """Encodes what the video begins with, or goes on from."""
        source = generator if request.posterior == "sample" else None
        if request.beginning is None:
            return None, request.continuation
        bring_in(self.vae)
        pixels = request.beginning.pixels(*self.transformer.sizes.pixels(request.schedule))
        if request.known_schedule is None:
            return None, begin_continuation(self.vae, pixels, source, device)
        return encode_known(self.vae, pixels, request.known_schedule, source, device), None

    def _decode(
        self,
        latent: Tensor,
        before: Continuation | None,
        request: Request,
        decoding: tuple[int, int | None],
        output_type: str,
    ) -> Any:
        """Frames [F, H, W, 3] as bytes, or the codes themselves."""
        if output_type == "latent":
            return latent
        bring_in(self.vae)
        chunk, tile = decoding
        whole = latent if before is None else before.joined(latent)
        if tile is None:
            chunks = self.vae.decode_stream(whole, chunk)
        else:
            chunks = self.vae.decode_tiled(whole, tile, tile // 4, chunk)
        shown = collect(chunks)
        # Of a continuation only the frames after the clip before are new.
        return shown if before is None else shown[-4 * latent.shape[2] :]
