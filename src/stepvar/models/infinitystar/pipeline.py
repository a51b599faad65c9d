"""Text to video with InfinityStar; text to picture, picture to video, video to longer video."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from stepvar.generation.guidance import Guidance
from stepvar.generation.joining import join_generations
from stepvar.generation.loop import Generation
from stepvar.generation.progress import Observer
from stepvar.generation.pruner import PruningMethod, plan_generation
from stepvar.generation.sampling import BitSampler
from stepvar.media.pictures import Picture
from stepvar.models.arguments import with_arguments_of
from stepvar.models.common.prompt_embeds import PromptEmbeds, split_embeds
from stepvar.models.common.t5 import encode_prompts
from stepvar.models.infinitystar import SPEC
from stepvar.models.infinitystar.checkpoints import check_pair
from stepvar.models.infinitystar.conditioning import VideoInput, encode_known_clips, start_continuation
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.output import (
    Decoding,
    DrawnVideo,
    VideoOutput,
    decode_frames,
    join_videos,
)
from stepvar.models.infinitystar.planning import plan_video
from stepvar.models.infinitystar.presets import PRESETS
from stepvar.models.infinitystar.request import (
    VideoRequest,
    check_clips,
    check_length,
    seconds_of_frames,
)
from stepvar.models.infinitystar.schedules import VideoSchedule
from stepvar.models.infinitystar.session import InfinityStarSession, TextPrefix
from stepvar.models.infinitystar.summaries import PlannedVideos
from stepvar.models.infinitystar.text import format_prompt
from stepvar.models.infinitystar.tiling import USUAL_TILE
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import DECODER_CHUNK, InfinityStarVAE
from stepvar.models.output import CALLBACK_TENSORS, CallOptions, FrameProcessor, StageTimer, StepCallback
from stepvar.models.request import Inputs, PerScale
from stepvar.pruning.presets import Pruning


class InfinityStarPipeline(PlannedVideos):
    """Draws videos and pictures from prompts.

    Args:
        transformer: Predicts bits.
        vae: The video tokenizer the transformer was trained with.
        text_encoder, tokenizer: T5's encoder and its tokenizer; may be left out when prompts come as
            embeddings.
        guidance_scale, guidance_threshold, temperature, picture_temperature, prompt_suffix, marks_duration:
            See `VideoDefaults`; None is what the transformer was first used with, or what the published
            scripts use for its resolution.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.
    """

    spec = SPEC
    presets = PRESETS
    draws_videos = True
    draws_previews = False
    streams_layers = True
    usual_text_tokens = 128
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
        given = {
            "guidance_scale": guidance_scale,
            "guidance_threshold": guidance_threshold,
            "temperature": temperature,
            "picture_temperature": picture_temperature,
            "prompt_suffix": prompt_suffix,
            "marks_duration": marks_duration,
        }
        self.register_defaults(dict.fromkeys(given), given)

    @property
    def remembers(self) -> bool:
        return False

    @property
    def text_length(self) -> int:
        return self.transformer.config.text_length

    def check(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        *,
        seconds: float | None = None,
        image: Picture | None = None,
        video: VideoInput | None = None,
        continuation: Continuation | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
        guidance_scale: PerScale | None = None,
        guidance_threshold: float | None = None,
        temperature: PerScale | None = None,
        top_k: int = 0,
        top_p: float = 0.0,
        posterior: str = "sample",
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        pruning: Pruning = None,
        prompt_embeds: PromptEmbeds | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: PromptEmbeds | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        decode_chunk: int = DECODER_CHUNK,
        decode_tile: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        batch_invariant: bool = False,
        observer: Observer | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> VideoRequest:
        """Checks the arguments of a call, and computes nothing yet.

        Args:
            prompt: One prompt, or several; completed to what the published weights read.
            height, width: Pixels; must be a size of the model's scale schedules.
            num_frames: Length of the whole video in frames, instead of seconds; 1 is a picture.
            seconds: Length of the whole video, what it begins with included; 0 is a picture. By default 5, or
                the longest where a video goes on.
            image: A picture to begin with: the first frame of every video.
            video: A video to go on from: its first seconds, which fill a clip.
            continuation: Of an earlier result, to go on interactively.
            negative_prompt: What to steer away from: one for all, or one a prompt.
            aspect_ratio: Width / height, instead of a size; the nearest schedule is taken. By default that of
                the picture or video to begin with, or else 16:9.
            pixel_budget: The name of the model's resolution; no other can be asked for.
            guidance_scale: One number or one a step; 1 is off.
            guidance_threshold: Of projected guidance; 0 is plain classifier-free guidance.
            temperature: Divides the logits, one number or one a step.
            top_k: 1 takes the likelier bit; 0 and 2 or more change nothing.
            top_p: Drops the rarer value of a bit at probability <= 1 - top_p; 0 is off.
            posterior: How what a video begins with is encoded: a seeded "sample", or the "mean".
            num_images_per_prompt: Videos of each prompt.
            seed: One a video, or one number s for s, s + 1, ...
            generator: Instead of seeds, one a video; a single one serves all videos in turn.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            prompt_embeds: Encoded prompts instead of prompts: one tensor [B, T, E], or one [T_i, E] a prompt.
            prompt_attention_mask: [B, T], where a prompt of one tensor has a token.
            negative_prompt_embeds, negative_prompt_attention_mask: Likewise, instead of negative prompts.
            decode_chunk: Latent frames decoded at a time: bounds memory, changes nothing else.
            decode_tile: Side in latent cells of the tiles that are decoded at a time, for devices short of
                memory; a quarter is shared with the neighbours. None decodes whole frames.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            return_dict: False returns the fields of the output as a tuple.
            batch_invariant: Computes every video by itself, its text too, so that none of its bits depends on
                the others of the call, in any number format; see docs/determinism.md.
            observer: Called after every step with its report.
            callback_on_step_end: Called as callback(pipeline, step, timestep, tensors) after every scale that
                ran; may return other latents, or set `pipeline._interrupt` to leave out the other scales.
            callback_on_step_end_tensor_inputs: What it is given: "latents", the accumulated codes.

        Returns:
            The videos, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        options = CallOptions(
            output_type,
            observer,
            return_dict,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            batch_invariant,
        )
        sizes = (self.transformer.config.text_channels, self.text_length)
        embeds = (
            split_embeds(prompt_embeds, prompt_attention_mask, *sizes),
            split_embeds(
                negative_prompt_embeds, negative_prompt_attention_mask, *sizes, "negative_prompt_embeds"
            ),
        )
        inputs = Inputs.of_texts(prompt, negative_prompt, embeds, seed, generator, num_images_per_prompt)
        plan = plan_video(
            self.transformer.sizes,
            self.defaults,
            seconds=seconds_of_frames(num_frames, seconds, self.transformer.sizes.frames_per_second),
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
        plan.require_conditioning()
        return VideoRequest(
            inputs=inputs,
            schedule=plan.schedule,
            guidance=plan.guidance,
            method=self._method(pruning, plan.schedule, plan.guidance),
            options=options,
            timer=StageTimer(self._execution_device),
            plan=plan,
            decoding=Decoding(
                decode_chunk, USUAL_TILE if decode_tile is None and self.vae.use_tiling else decode_tile
            ),
        )

    @with_arguments_of(check)
    def __call__(self, *args: Any, **kwargs: Any) -> VideoOutput:
        """Draws videos, one after the other."""
        request = self.check(*args, **kwargs)
        videos = [self.draw_video(one) for part in request.parts for one in self.encode_texts(part)]
        return self.join(videos, request)

    def draw_video(self, request: VideoRequest) -> DrawnVideo:
        """Draws one video, whose text is encoded."""
        begun = self.encode_conditioning(request)
        sampler = self.sampler(begun)
        session = self.prefill(begun)
        result = self.run_scales(session, sampler, begun)
        return self.decode_video(session, result, begun)

    def encode_texts(self, request: VideoRequest) -> list[VideoRequest]:
        """The requests of each video, with its text as the published weights read it."""
        inputs, prompts = request.inputs, self._completed(request.inputs.prompts, request.plan.seconds)
        with request.timer.stage("text"):
            positive, negative = self.features(replace(request, inputs=replace(inputs, prompts=prompts)))
            if negative is None and request.guidance.active:
                self.load_to_device(self.transformer)
                blank, device = self.transformer.unconditional, self._execution_device
                negative = [blank(len(text), device) for text in positive]
        sides = [positive] if negative is None else [positive, negative]
        texts = [TextPrefix(*pair) for pair in zip(*sides, strict=True) for _ in range(inputs.repeats)]
        return [
            replace(request, inputs=replace(inputs, generators=[generator], seeds=[seed]), text=text)
            for text, generator, seed in zip(texts, inputs.generators, inputs.seeds, strict=True)
        ]

    def encode_conditioning(self, request: VideoRequest) -> VideoRequest:
        """The request with what its video begins with, or goes on from, encoded."""
        plan, (generator,), device = request.plan, request.inputs.generators, self._execution_device
        if plan.conditioning is None:
            return replace(request, before=plan.continuation)
        source = generator if plan.posterior == "sample" else None
        with request.timer.stage("text"):
            self.load_to_device(self.vae)
            pixels = plan.conditioning.pixels(*self.pixels(plan.schedule))
            if plan.known_schedule is None:
                return replace(request, before=start_continuation(self.vae, pixels, source, device))
            known = encode_known_clips(self.vae, pixels, plan.known_schedule, source, device)
            return replace(request, known=known)

    def sampler(self, request: VideoRequest) -> BitSampler:
        plan, device = request.plan, self._execution_device
        bits = [scale.bits for scale in plan.schedule]
        with request.timer.stage("scales"):
            return BitSampler(plan.sampling, plan.schedule, bits, request.inputs.generators, device)

    def prefill(self, request: VideoRequest) -> InfinityStarSession:
        if request.text is None:
            raise ValueError("The request has no encoded text: take one of `encode_texts`.")
        with request.timer.stage("text"):
            self.load_to_device(self.transformer)
            plan = request.plan
            conditions = (
                ()
                if request.before is None
                else request.before.conditions(plan.semantic_grid, plan.first_position, plan.detail_frames)
            )
            return InfinityStarSession(
                self.transformer,
                request.text,
                plan.schedule,
                request.known,
                conditions,
                self._execution_device,
            )

    def decode_video(
        self, session: InfinityStarSession, result: Generation, request: VideoRequest
    ) -> DrawnVideo:
        """Frames of the finished codes, or the codes where they were asked for."""
        latent, before = session.video(), request.before
        with request.timer.stage("decode"):
            frames = latent
            if request.options.output_type != "latent":
                self.load_to_device(self.vae)
                frames = decode_frames(self.vae, latent, before, request.decoding)
        return DrawnVideo(frames, result, None if before is None else before.after(latent))

    def join(self, videos: Sequence[DrawnVideo], request: VideoRequest) -> VideoOutput:
        """All videos of a request in the form asked for, and one report of them."""
        output = VideoOutput(
            frames=join_videos([video.frames for video in videos], request.options.output_type),
            frames_per_second=self.transformer.sizes.frames_per_second,
            report=self.report(join_generations([video.generation for video in videos]), request),
            continuations=[video.after for video in videos if video.after is not None],
        )
        self.maybe_free_model_hooks()
        return request.options.packed(output)

    def _method(self, pruning: Pruning, schedule: VideoSchedule, guidance: Guidance) -> PruningMethod | None:
        check_length(pruning, schedule, self.transformer.sizes.clip_seconds)
        method = self.check_pruning(pruning, schedule, guidance)
        check_clips(schedule, plan_generation(method, schedule, self.depth))
        return method

    def _completed(self, prompts: Sequence[str], seconds: float) -> list[str]:
        """Prompts as the weights read them."""
        defaults = self.defaults
        return [
            format_prompt(prompt, seconds, defaults.prompt_suffix, defaults.marks_duration)
            for prompt in prompts
        ]

    def described(self, prompts: Sequence[str], seconds: float | None = None) -> list[str]:
        """Prompts as the text encoder reads them, for a video of so many seconds; by default a call's."""
        length = self.check(list(prompts), seconds=seconds).plan.seconds
        return self._completed(prompts, length)

    @property
    def video_processor(self) -> FrameProcessor:
        """Turns decoded frames into pictures, as in diffusers."""
        return FrameProcessor(vae_scale_factor=self.vae_scale_factor)

    def check_prompts(
        self, prompts: Sequence[str], negatives: Sequence[str] = (), seconds: float | None = None
    ) -> None:
        """As for other models; what is added to a prompt counts too, and nothing is added to negative ones.

        Args:
            prompts: Prompts of a call.
            negatives: Its negative prompts.
            seconds: Of the video, which a prompt may name; None counts the longest one.
        """
        seconds = self.transformer.sizes.longest if seconds is None else seconds
        super().check_prompts([*self._completed(prompts, seconds), *negatives])

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        tokenizer, text_encoder = self.text_parts()
        return encode_prompts(tokenizer, text_encoder, prompts, self.text_length, self._execution_device)

    def own_settings(self, request: VideoRequest) -> dict[str, Any]:
        return request.plan.settings
