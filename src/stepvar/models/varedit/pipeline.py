"""Editing of pictures by instructions, with VAREdit."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from stepvar.editing.pictures import Box
from stepvar.generation.cascade import Cascade
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer
from stepvar.generation.report import PrefixCost, ScaleCost, Summary
from stepvar.generation.schedule import ScaleSchedule
from stepvar.media.pictures import Picture
from stepvar.models.arguments import known_arguments, with_arguments_of
from stepvar.models.common.prompt_embeds import PromptEmbeds
from stepvar.models.edit_request import EditSettings
from stepvar.models.editing import EditOutput
from stepvar.models.infinity.base_pipeline import BitsRequest, InfinityBasePipeline
from stepvar.models.infinity.session import TextCondition
from stepvar.models.output import CALLBACK_TENSORS, CallOptions, ImageOutput, StepCallback
from stepvar.models.request import PerScale
from stepvar.models.varedit import SPEC
from stepvar.models.varedit.costs import memory_plan, scale_costs, source_cost
from stepvar.models.varedit.masked import call_arguments, check_instruction, run_instruction
from stepvar.models.varedit.pictures import check_fit, crop_result, fit_to_canvas, read_sources
from stepvar.models.varedit.presets import PRESETS
from stepvar.models.varedit.published import check_schedule
from stepvar.models.varedit.session import SourceProbe, VAREditSession
from stepvar.pruning.presets import Pruning

if TYPE_CHECKING:
    from typing_extensions import Self

PUBLISHED: Mapping[str, Any] = {"guidance_scale": 3.0, "temperature": 0.1, "top_k": 900, "top_p": 0.97}
"""Defaults of a call; HiDream-ai/VAREdit, README.md (guidance and temperature) and tools/run_infinity.py."""


@dataclass(frozen=True, kw_only=True)
class EditRequest(BitsRequest):
    """A checked call.

    Attributes:
        sources: The picture to edit of each result, of its own size.
        fit: How they come onto the model's canvas.
    """

    sources: Sequence[Image.Image]
    fit: str

    @property
    def parts(self) -> list[Self]:
        """As for other models, each part with its own picture to edit."""
        parts = super().parts
        if len(parts) == 1:
            return parts
        return [replace(part, sources=[source]) for part, source in zip(parts, self.sources, strict=True)]


class VAREditPipeline(InfinityBasePipeline[EditRequest]):
    """Edits pictures as instructions say; its arguments are those of `InfinityBasePipeline`.

    The whole picture is drawn anew: encoder features of the old one run through all layers once, and every
    scale attends to them.
    """

    spec = SPEC
    presets = PRESETS
    published = PUBLISHED
    needs_picture = True

    def check(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        fit: str = "pad",
        negative_prompt: str | Sequence[str] | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
        guidance_scale: PerScale | None = None,
        guidance_layers: Sequence[int] = (0,),
        temperature: PerScale | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        pruning: Pruning = None,
        cascade: Cascade | None = None,
        prompt_embeds: PromptEmbeds | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: PromptEmbeds | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        batch_invariant: bool = False,
        observer: Observer | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> EditRequest:
        """Checks the arguments of a call, and computes nothing yet.

        Args:
            prompt: What to change: one instruction, or several of any length.
            height, width: Pixels of the model's canvas; by default the square its weights were trained for.
            image: The picture to edit, a PIL picture or a file: one for all prompts, or one a prompt.
            fit: How a picture of another shape comes onto the canvas: "pad" adds white below or at the right,
                as the official inference does, and returns the whole picture; "crop" takes the middle.
            negative_prompt: What to steer away from: one for all, or one a prompt.
            aspect_ratio: Width / height of the canvas, instead of a size; the nearest schedule is taken. The
                published weights saw squares only.
            pixel_budget: Which schedule length, "1M" for example; only what the weights were trained for.
            guidance_scale: Classifier-free guidance by the instruction, one number or one a scale; 1 is off.
                Both copies see the picture.
            guidance_layers: 0 guides the logits; -m guides after layer depth - m. May be combined.
            temperature: Divides the logits, one number or one a scale.
            top_k: 1 takes the likelier bit; 0 and 2 or more change nothing.
            top_p: Drops the rarer value of a bit at probability <= 1 - top_p; 0 is off.
            num_images_per_prompt: Pictures of each prompt.
            seed: One an image, or one number s for s, s + 1, ...
            generator: Instead of seeds, one an image; a single one serves all images in turn.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run. What is drawn
                is pruned; the source always runs whole.
            cascade: Another pipeline that draws the first scales; this one draws the others. Both read the
                picture.
            prompt_embeds: Encoded prompts instead of prompts: one tensor [B, T, E], or one [T_i, E] a prompt.
            prompt_attention_mask: [B, T], where a prompt of one tensor has a token.
            negative_prompt_embeds, negative_prompt_attention_mask: Likewise, instead of negative prompts.
            output_type: "pil" for pictures of the size of those that were given; "np" or "pt" for the whole
                canvas; or "latent" for the accumulated codes.
            return_dict: False returns the fields of the output as a tuple.
            batch_invariant: Computes every picture by itself, so that none of its bits depends on the others
                of the call, in any number format; takes longer, see docs/determinism.md.
            observer: Called after every scale with its report.
            callback_on_step_end: Called as callback(pipeline, step, timestep, tensors) after every scale that
                ran; may return other latents, or set `pipeline._interrupt` to leave out the other scales.
            callback_on_step_end_tensor_inputs: What it is given: "latents", the accumulated codes.

        Returns:
            The pictures, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        inputs = self.inputs(
            prompt,
            negative_prompt,
            (prompt_embeds, prompt_attention_mask),
            (negative_prompt_embeds, negative_prompt_attention_mask),
            seed,
            generator,
            num_images_per_prompt,
        )
        schedule = self.schedule(height, width, aspect_ratio, pixel_budget)
        sources = read_sources(image, len(inputs.prompts))
        check_fit(fit, sources, self._canvas(schedule))
        options = CallOptions(
            output_type,
            observer,
            return_dict,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            batch_invariant,
        )
        fields = self.request_fields(
            inputs,
            schedule,
            options,
            guidance_scale=guidance_scale,
            guidance_layers=guidance_layers,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            pruning=pruning,
            cascade=cascade,
        )
        results = [source for source in sources for _ in range(inputs.repeats)]
        return EditRequest(**fields, sources=results, fit=fit)

    @with_arguments_of(check)
    def __call__(self, *args: Any, **kwargs: Any) -> ImageOutput:
        """Edits pictures."""
        return self.draw(self.check(*args, **kwargs))

    def edit(
        self,
        *subject: Any,
        image: Picture | Sequence[Picture] | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        box: Box | Sequence[Box] | None = None,
        pruning: Pruning = None,
        feather: int | None = None,
        composited: bool = True,
        fit: str = "pad",
        **call: Any,
    ) -> EditOutput:
        """Edits a picture as an instruction says; with a mask, only what it covers is taken over.

        The whole picture is drawn anew in either case, so a mask saves no time. Pixels outside of it are the
        picture's, bit for bit.

        Args:
            subject: The instruction; one, or one a picture.
            image: A picture or its file, or several.
            mask: White may change; of the picture's size or shape; one, or one a picture.
            box: Instead of a mask: left, top, width and height in pixels, or in shares of the sides; one, or
                one a picture.
            pruning: As in a call.
            feather: Pixels inside of the mask's border in which old and new are blended; by default 1/64 of
                the shorter side.
            composited: Whether to put the picture's own pixels back outside of a mask.
            fit: As in a call.
            call: Further arguments of a call.

        Returns:
            The pictures, what they were made from, and a report.

        Raises:
            ValueError: When an argument is wrong; nothing has been drawn then. A new border, a strength, a
                margin and late scales are for other models.
        """
        settings = EditSettings(mask, box, pruning=pruning, feather=feather, composited=composited, fit=fit)
        known = {*inspect.signature(self.check).parameters, *EditSettings.__dataclass_fields__}
        call = known_arguments(type(self).__name__, call, known)
        with self.drawing():
            return run_instruction(self, check_instruction(self, subject, settings, {"image": image, **call}))

    def check_trained(self, schedule: ScaleSchedule) -> None:
        """Refuses sizes whose positions the weights never saw; says so when the canvas is no square."""
        check_schedule(schedule, self.transformer.size_table, self.transformer.config.budgets)

    def _canvas(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """Width and height that the model draws."""
        height, width = self.pixels(schedule)
        return width, height

    def prefill(self, request: EditRequest) -> VAREditSession:
        with request.timer.stage("text"):
            texts = self.features(request)
            source = self.encode_sources(request)
            condition = self.condition(request, texts)
            self.load_to_device(self.transformer)
            return self.start(condition, request.schedule, source, repeats=request.inputs.repeats)

    def encode_sources(self, request: EditRequest) -> Tensor:
        """Encoder features [B, d, H, W] of the pictures on their canvas, in float32."""
        return self.encode_pictures(request.sources, self._canvas(request.schedule), request.fit)

    def encode_pictures(
        self, pictures: Sequence[Image.Image], canvas: tuple[int, int], fit: str = "pad"
    ) -> Tensor:
        """Encoder features [n, d, H, W] of pictures, continuous, in float32.

        Each picture is encoded alone, so that its features do not depend on the others, and once, however
        often it comes.

        Args:
            pictures: RGB, of any size.
            canvas: Width and height that the model draws.
            fit: How they come onto the canvas.
        """
        self.load_to_device(self.vae)
        encoded: dict[int, Tensor] = {}
        for picture in pictures:
            if id(picture) not in encoded:
                pixels = fit_to_canvas(picture, canvas, fit)[None].to(self._execution_device)
                encoded[id(picture)] = self.vae.encode_features(pixels)
        return torch.cat([encoded[id(picture)] for picture in pictures])

    def start(
        self,
        condition: TextCondition,
        schedule: ScaleSchedule,
        source: Tensor,
        source_probe: SourceProbe | None = None,
        repeats: int = 1,
    ) -> VAREditSession:
        """The model at work on encoded texts and pictures.

        Args:
            condition: Text of every row.
            schedule: The scales.
            source: [B, d, H, W] encoder features of the pictures.
            source_probe: Sees hidden states of the source pass.
            repeats: Pictures of each instruction, whose source runs once.
        """
        template = self.transformer.size_table.largest(schedule)
        patchify, device = self.vae.config.patchify, self._execution_device
        return VAREditSession(
            self.transformer, condition, schedule, source, template, patchify, device, source_probe, repeats
        )

    def finish_pictures(self, pictures: list[Image.Image], request: EditRequest) -> list[Image.Image]:
        """Results at the sizes of the pictures that they were made from."""
        return [
            crop_result(picture, source.size, request.fit)
            for picture, source in zip(pictures, request.sources, strict=True)
        ]

    def own_settings(self, request: EditRequest) -> dict[str, Any]:
        sizes = [list(picture.size) for picture in request.sources[:: request.inputs.repeats]]
        return {**super().own_settings(request), "fit": request.fit, "source_sizes": sizes}

    def summary(
        self,
        pruning: Pruning = None,
        *,
        images: int | None = None,
        text_tokens: int | None = None,
        **call: Any,
    ) -> Summary:
        """As for other models, with the source pass; picture and mask may be left out, and change nothing.

        Args:
            pruning: As in a call.
            images: Pictures in the batch; by default as many as the call would draw, one without a prompt.
            text_tokens: Tokens of a prompt; by default `usual_text_tokens`.
            call: Further arguments of a call. Those that only change what is sampled change nothing here.

        Raises:
            ValueError: As the call would.
        """
        call = call_arguments(type(self).__name__, call)
        if call.get("image") is None:
            call["image"] = Image.new("RGB", (64, 64), (255, 255, 255))
        return super().summary(pruning, images=images, text_tokens=text_tokens, **call)

    def summarise(self, request: EditRequest, images: int, text_tokens: int) -> Summary:
        """As for other models, with the source pass and the memory; in a cascade each model runs its own."""
        whole = super().summarise(request, images, text_tokens)
        together = 1 if request.options.batch_invariant else images
        copies, repeats = 2 if request.guidance.active else 1, request.inputs.repeats
        # Pictures of one instruction share its source; `images` may be any other number.
        repeats = repeats if together % repeats == 0 else 1

        def cost(pipeline: VAREditPipeline, plan: GenerationPlan | None = None) -> PrefixCost:
            plan = plan or GenerationPlan.dense(request.schedule, pipeline.depth)
            one = source_cost(pipeline.transformer, plan, together, copies, text_tokens, repeats)
            return replace(one, flops=images // together * one.flops)

        own = cost(self, whole.plan)
        if request.cascade is None:
            whole = replace(whole, prefix=own, dense_prefix=cost(self))
            parts = {"text_encoder": self.text_encoder, "transformer": self.transformer, "vae": self.vae}
            there = {name: part for name, part in parts.items() if part is not None}
            return replace(whole, memory=memory_plan(there, whole, self.pixels(request.schedule), together))
        draft = cost(request.cascade.drafter)
        # Only one of the two caches lives at a time.
        cache = max(own.cache_bytes, draft.cache_bytes)
        both = replace(own, flops=own.flops + draft.flops, cache_bytes=cache)
        return replace(whole, prefix=both, dense_prefix=draft)

    def scale_costs(
        self,
        request: EditRequest,
        plan: GenerationPlan,
        rows: Sequence[int],
        images: int,
        text_tokens: int,
    ) -> tuple[ScaleCost, ...]:
        return scale_costs(self.transformer, plan, rows, text_tokens)
