"""Base of all pipelines: from a checked request through the loop over scales to pixels and a report."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from stepvar.editing.masks import LATE_SCALES, MARGIN
from stepvar.editing.pictures import Box
from stepvar.generation.attention import attention_kernel
from stepvar.generation.cascade import generate_in_cascade
from stepvar.generation.fields import require_arguments
from stepvar.generation.guidance import Guidance
from stepvar.generation.joining import join_generations
from stepvar.generation.loop import Generation, Sampler, ScaleCallback, Session, generate
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import ScaleReport
from stepvar.generation.pruner import PruningMethod, plan_generation
from stepvar.generation.report import Report, ScaleCost, Summary
from stepvar.generation.sampling import CodebookChoice
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Choice
from stepvar.media.pictures import Picture
from stepvar.models.arguments import known_arguments
from stepvar.models.common.attention_backends import backend_title
from stepvar.models.edit_request import REGION, Edit, EditSettings, check_edit, edit_arguments
from stepvar.models.editing import EditOutput, run_edit, summarise_edit
from stepvar.models.encoded_prompts import EncodedPrompts, PooledPrompts, padded_prompts
from stepvar.models.output import (
    CALLBACK_TENSORS,
    ImageOutput,
    PictureProcessor,
    as_json_value,
    changed_latent,
    peak_memory,
    require_finite_pixels,
    to_output,
)
from stepvar.models.parts import TextPipeline, Transformer, VisualDecoder
from stepvar.models.plan_files import is_plan_file, load_plan
from stepvar.models.request import Request, as_negatives, as_prompts, check_guidance, check_plan
from stepvar.models.spec import ModelSpec
from stepvar.pruning.presets import ChangedPreset, Preset, Pruning, changed, resolve_pruning

_DEFAULTS = "_call_defaults"
"""Where a transformer's configuration keeps the defaults of the first pipeline that it was part of."""

_PER_PICTURE = ("seed", "generator", "negative_prompt", "negative_prompt_embeds")
"""Arguments of a call that need to know how many prompts there are."""


Asked = TypeVar("Asked", bound=Request)
"""A model's own request."""


class NextScalePipeline(TextPipeline, Generic[Asked]):
    """Base of the pipelines: one generation loop, one way to pass pruning, seeds and sizes.

    A call goes through `check` (everything wrong is said there) and `draw`: `sampler` and `prefill` (noise,
    texts, what is computed once), `run_scales` (the loop) and `decode` (pixels). A model's own pipeline has
    `check`, `sampler` and `prefill`.

    Attributes:
        spec: What the package knows of the model.
        presets: Pruning plans by name, which `pruning` takes.
        reads_text: Whether it is called with texts; otherwise with numbers of classes.
        draws_videos: Whether results have `.frames`, and calls take `seconds`.
        needs_picture: Whether every call edits a picture as its prompt says, and so needs `image`.
        draws_previews: Whether a picture can be looked at before it is finished.
        edits_pictures: Whether it has `known_values`, which `edit` needs.
        example_prompt: Something that this kind of pipeline draws.
        usual_text_tokens: Tokens of a prompt that `summary` assumes unless it is given.
    """

    spec: ClassVar[ModelSpec]
    presets: ClassVar[Mapping[str, Preset]]
    reads_text = True
    _callback_tensor_inputs: ClassVar[list[str]] = list(CALLBACK_TENSORS)
    _interrupt = False
    _num_timesteps = 0
    _last_guidance: Guidance | None = None
    draws_videos = False
    needs_picture = False
    draws_previews = True
    edits_pictures = False
    example_prompt: str = "two yellow stars above a striped blue ring on sand"
    usual_text_tokens = 16
    _subject = "prompt"
    """The argument of a call that says what to draw."""

    transformer: Transformer
    vae: VisualDecoder

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Every pipeline has its own arguments, and an output of its own."""

    def check(self, *args: Any, **kwargs: Any) -> Asked:
        """Checks the arguments of a call and computes nothing yet.

        Raises:
            ValueError: When one is wrong, with what would work.
        """
        raise NotImplementedError

    def sampler(self, request: Asked) -> Sampler:
        """Draws the random numbers of a request: first of all, so that nothing else moves them."""
        raise NotImplementedError

    def prefill(self, request: Asked) -> Session:
        """Encodes what a request asks for, and computes what all scales share."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str]) -> Any:
        """Features of texts, one a text."""
        raise NotImplementedError

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_images_per_prompt: int = 1,
        device: torch.device | str | None = None,
        **described: Any,
    ) -> EncodedPrompts | PooledPrompts:
        """Encodes prompts for a later call, as in diffusers.

        Args:
            prompt: One, or several.
            negative_prompt: One for all, or one a prompt. Without one a call takes what its model has for it.
            do_classifier_free_guidance: Whether negative prompts are wanted.
            num_images_per_prompt: How often each prompt is repeated; or leave that to the call.
            device: Where the result goes; by default where a call runs.
            described: What else the text says; `seconds` of a video.

        Returns:
            Arguments of a call as a tuple with names: `pipe(**encoded._asdict())`.

        Raises:
            ValueError: When a prompt is missing or empty, or the model reads no texts.
        """
        prompts = as_prompts(prompt)
        negatives = as_negatives(negative_prompt, len(prompts)) if do_classifier_free_guidance else None
        self.text_parts()
        with self.drawing():
            positive = self.encode(self.described(prompts, **described))
            negative = None if negatives is None else self.encode(negatives)
            place = torch.device(device) if device is not None else self._execution_device
            encoded = self.pack_encoded(positive, negative, num_images_per_prompt)
        self.maybe_free_model_hooks()
        fields = (None if field is None else field.to(place) for field in encoded)
        return type(encoded)(*fields)  # type: ignore[arg-type]  # which fields are None stays

    def described(self, prompts: Sequence[str]) -> Sequence[str]:
        """Prompts as the text encoder reads them."""
        return prompts

    def pack_encoded(self, positive: Any, negative: Any, repeats: int) -> EncodedPrompts | PooledPrompts:
        """What `encode` gave, as arguments of a call.

        Args:
            positive, negative: Of prompts and negative prompts; None without any.
            repeats: How often each is wanted.
        """
        padded = None if negative is None else padded_prompts(negative)
        return EncodedPrompts.of(padded_prompts(positive), padded, repeats)

    def scale_costs(
        self, request: Asked, plan: GenerationPlan, rows: Sequence[int], images: int, text_tokens: int
    ) -> tuple[ScaleCost, ...]:
        """What every scale of a plan costs, for so many batch rows at each."""
        raise NotImplementedError

    def known_values(self, left_over: Tensor, scale: Scale) -> Choice:
        """What the tokens of a scale are, given what is left over of a picture's features.

        Args:
            left_over: [B, d, H, W] on the latent grid, features minus accumulated codes.

        Returns:
            A choice that the session commits, of all tokens.
        """
        raise NotImplementedError

    def edit_size(self, width: int, height: int) -> Mapping[str, Any]:
        """Arguments of a call that set the size for a picture of so many pixels."""
        return {}

    def own_settings(self, request: Asked) -> dict[str, Any]:
        """What the pictures of a request depend on besides what those of all models do."""
        return {}

    def register_defaults(self, published: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Registers what a call uses where it says nothing, as the pipeline's configuration.

        That is what was given (not None), else what the transformer was first used with, else what is
        published. So a second pipeline of the same components draws the same pictures.

        Raises:
            ValueError: When one is of another kind, in a saved folder for example.
        """
        remembered: Mapping[str, Any] = self.transformer.config.get(_DEFAULTS, {})
        defaults = {**published, **remembered}
        defaults |= {name: value for name, value in given.items() if value is not None}
        require_arguments(type(self).__init__, defaults)
        self.register_to_config(**defaults)
        if not remembered:
            self.transformer.register_to_config(**{_DEFAULTS: defaults})

    @property
    def remembers(self) -> bool:
        """Whether every scale sees all earlier ones, by keys and values that could also be forgotten."""
        return True

    @property
    def rounds_cache(self) -> bool:
        """Whether its keys and values may be held as 8-bit integers."""
        return self.remembers

    @property
    def depth(self) -> int:
        """Layers of the transformer."""
        return len(self.transformer.blocks)

    def check_loaded(self) -> None:
        """Plans a dense run: settings and schedules that cannot run are refused when they are loaded."""
        self.summary()

    def require_prompts_alone(self, purpose: str) -> None:
        """Refuses a model that needs a picture with every prompt, where only prompts are given.

        Args:
            purpose: What gives prompts only, for the message: "A report".

        Raises:
            ValueError: When every call of this model edits a picture.
        """
        if self.needs_picture:
            raise ValueError(
                f"{purpose} draws from prompts alone, and {type(self).__name__} edits pictures: name another "
                "model, or use generate, compare or bench with --image."
            )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent position in each direction."""
        return self.vae.stride

    @property
    def image_processor(self) -> PictureProcessor:
        """Turns decoded pixels into pictures, as in diffusers."""
        return PictureProcessor(vae_scale_factor=self.vae_scale_factor)

    def schedule(self) -> ScaleSchedule:
        """The scale schedule of a size; a model's own takes the arguments of a call that set it."""
        raise NotImplementedError

    def pixels(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """Height and width of what a schedule draws."""
        raise NotImplementedError

    def frames_of(self, scale: Scale) -> tuple[int, ...]:
        """Which frames the maps of a scale stand for, one a map; a picture is frame 0."""
        return (0,)

    def run_scales(self, session: Session, sampler: Sampler, request: Asked) -> Generation:
        """Runs the loop over scales, in a cascade where one was asked for."""
        cascade = request.cascade
        draft: Session | None = None if cascade is None else cascade.drafter.prefill(request)
        self._num_timesteps, self._last_guidance = len(request.schedule), request.guidance
        _backend, kernel = self.transformer.attention_in_force()
        with (
            request.timer.stage("scales"),
            attention_kernel(kernel),
            self.progress_bar(total=len(request.schedule)) as bar,
        ):

            def observe(report: ScaleReport) -> None:
                bar.update()
                if request.options.observer is not None:
                    request.options.observer(report)

            if cascade is None or draft is None:
                return generate(
                    session,
                    guidance=request.guidance,
                    sampler=sampler,
                    pruning=request.method,
                    observer=observe,
                    preview=self.preview,
                    on_scale_end=self._scale_callback(request),
                )
            result = generate_in_cascade(
                draft,
                session,
                cascade.scales,
                guidance=request.guidance,
                sampler=sampler,
                pruning=request.method,
                observer=observe,
                preview=self.preview,
            )
            cascade.drafter.maybe_free_model_hooks()
            return result

    def _scale_callback(self, request: Asked) -> ScaleCallback | None:
        """What the loop calls after every scale: the callback of diffusers, which may interrupt the run."""
        self._interrupt = False
        options = request.options
        callback = options.callback
        if callback is None:
            return None

        def call(report: ScaleReport, latent: Tensor) -> Tensor | None:
            tensors = dict.fromkeys(options.callback_tensors, latent)
            changed = callback(self, report.plan.scale.index, report.plan.scale.index, tensors)
            latent = changed_latent(changed, latent)
            return None if self._interrupt else latent

        return call

    @property
    def num_timesteps(self) -> int:
        """Scales of the last call."""
        return self._num_timesteps

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call was guided."""
        return self._last_guidance is not None and self._last_guidance.active

    @property
    def guidance_scale(self) -> float | None:
        """The strongest guidance of the last call, at any scale; before the first call, its default."""
        default: float | None = self.config["guidance_scale"]
        return default if self._last_guidance is None else max(self._last_guidance.weights)

    @guidance_scale.setter
    def guidance_scale(self, value: Any) -> None:
        raise ValueError(
            "Guidance is planned before a call and cannot be set on a pipeline: pass guidance_scale, one "
            "number or one a scale (1 is off)."
        )

    _guidance_scale = guidance_scale
    """The name under which callbacks of diffusers set it."""

    @property
    def interrupt(self) -> bool:
        """Whether the scales that are left are left out; a callback sets `_interrupt`, a call resets it."""
        return self._interrupt

    def draw(self, request: Asked) -> ImageOutput:
        """Draws what a checked request of pictures asks for: together, or each picture by itself."""
        drawn = [self.draw_part(part) for part in request.parts]
        kind = request.options.output_type
        with request.timer.stage("decode"):
            values = torch.cat([values for _, values in drawn]) if len(drawn) > 1 else drawn[0][1]
            images: Any = values if kind == "latent" else to_output(values, kind)
            images = self.finish_pictures(images, request) if kind == "pil" else images
        result = join_generations([generation for generation, _ in drawn])
        output = ImageOutput(images=images, report=self.report(result, request))
        self.maybe_free_model_hooks()
        return request.options.packed(output)

    def draw_part(self, request: Asked) -> tuple[Generation, Tensor]:
        """Computes pictures together: what the loop left, and their pixels or codes."""
        sampler = self.sampler(request)
        session = self.prefill(request)
        result = self.run_scales(session, sampler, request)
        return result, self.decode(result, request)

    def decode(self, result: Generation, request: Asked) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 of the finished codes, or the codes where they were asked for."""
        if request.options.output_type == "latent":
            return result.latent
        with request.timer.stage("decode"):
            self.load_to_device(self.vae)
            return require_finite_pixels(self.decode_codes(result.latent))

    def finish_pictures(self, pictures: list[Image.Image], request: Asked) -> list[Image.Image]:
        """Drawn pictures as a call hands them over: as they are, unless a model returns another size."""
        return pictures

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Accumulated codes [B, d, h, w] as pixels in -1..1, as much at a time as `enable_vae_*` allow."""
        pixels: Tensor = self.vae.decode(codes, return_dict=False)[0]
        return pixels

    def report(self, result: Generation, request: Asked) -> Report:
        """How a request was carried out."""
        choices = {
            scale: choice.index if isinstance(choice, CodebookChoice) else choice
            for scale, choice in result.choices.items()
        }
        return Report(
            result.scales,
            request.timer.seconds(),
            result.cache_bytes,
            peak_memory(request.timer.device),
            request.inputs.seeds,
            self.settings(request),
            choices,
        )

    def settings(self, request: Asked) -> dict[str, Any]:
        """What the pictures of a request depend on, in a form that JSON can hold."""
        inputs, (height, width) = request.inputs, self.pixels(request.schedule)
        negatives = {} if inputs.negatives is None else {"negative_prompts": inputs.negatives}
        settings: dict[str, Any] = as_json_value(
            {
                "model": self.origin,
                "prompts": inputs.prompts,
                **negatives,
                "width": width,
                "height": height,
                "guidance_scale": request.guidance.weights,
                "pruning": request.method,
                "dtype": str(self.transformer.compute_dtype).removeprefix("torch."),
                "batch_invariant": request.options.batch_invariant,
                **self.own_settings(request),
            }
        )
        return settings

    def preview(self, codes: Tensor) -> Tensor:
        """Draws codes [B, d, h, w] of any size as pixels in -1..1, in the middle of a generation."""
        self.load_to_device(self.vae)
        pixels = self.decode_codes(codes)
        self.load_to_device(self.transformer)
        return pixels

    def summary(
        self,
        pruning: Pruning = None,
        *,
        images: int | None = None,
        text_tokens: int | None = None,
        **call: Any,
    ) -> Summary:
        """What a call with these arguments will run: tokens kept, skips, FLOPs and KV bytes a scale.

        Args:
            pruning: As in a call.
            images: Pictures in the batch; by default as many as the call would draw, one without a prompt.
            text_tokens: Tokens of a prompt, for the cost of reading it; by default `usual_text_tokens`.
            call: Further arguments of a call. Those that only change what is sampled change nothing here.

        Raises:
            ValueError: As the call would.
        """
        if call.get(self._subject) is None and call.get("prompt_embeds") is None:
            call = {name: value for name, value in call.items() if name not in _PER_PICTURE}
            call[self._subject] = self.example_prompt
        if call.get("image") is not None and "image" not in inspect.signature(self.check).parameters:
            return self._edit_summary(pruning, text_tokens, call)
        call = known_arguments(type(self).__name__, call, inspect.signature(self.check).parameters)
        request = self.check(pruning=pruning, **call)
        count = request.inputs.images if images is None else images
        return self.summarise(request, count, text_tokens or self.usual_text_tokens)

    def summarise(self, request: Asked, images: int, text_tokens: int) -> Summary:
        """What a request will run and what that costs, against the dense run.

        Pictures that are computed one after the other add up in FLOPs; rows and cache are those of one.
        """

        together = 1 if request.options.batch_invariant else images

        def costs(plan: GenerationPlan) -> tuple[ScaleCost, ...]:
            guidance, copies = request.guidance, 2 if request.guidance.active else 1
            if plan.unguided is not None:
                guidance = replace(guidance, until=(plan.unguided,) * together, remaining=plan.remaining)
            rows = [guidance.row_count(entry.scale.index, together, copies) for entry in plan.scales]
            found = self.scale_costs(request, plan, rows, together, text_tokens)
            return tuple(replace(cost, flops=images // together * cost.flops) for cost in found)

        plan = plan_generation(request.method, request.schedule, self.depth)
        backend, _kernel = self.transformer.attention_in_force()
        dense = costs(GenerationPlan.dense(request.schedule, self.depth))
        return Summary(plan, costs(plan), dense, backend_title(backend))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the blocks of the transformer, `transformer.compile_repeated_blocks()`.

        Args:
            args, kwargs: As for `torch.compile`.
        """
        self.transformer.compile_repeated_blocks(*args, **kwargs)

    def edit(
        self,
        *subject: Any,
        image: Picture | Sequence[Picture],
        mask: Picture | Sequence[Picture] | None = None,
        box: Box | Sequence[Box] | None = None,
        outpaint: Sequence[int] | None = None,
        strength: float | None = None,
        pruning: Pruning = REGION,
        margin: int = MARGIN,
        late_scales: int = LATE_SCALES,
        feather: int | None = None,
        composited: bool = True,
        fit: str = "crop",
        **call: Any,
    ) -> EditOutput:
        """Draws a picture anew where a mask says so, or varies all of it.

        The picture is encoded to features once. At every scale, tokens outside of the mask are the picture's
        own and those inside are drawn; `stepvar.editing.masks` has the rule for cells that are partly
        covered. Pixels outside of the mask are the picture's, bit for bit.

        Args:
            subject: The prompt, or class, of the whole edited picture; one, or one a picture.
            image: A picture or its file, or several; each is turned upright and read as 8-bit sRGB.
            mask: White may change; of the picture's size or shape; one, or one a picture.
            box: Instead of a mask: left, top, width and height; one, or one a picture. Whole numbers are
                pixels, others shares of the picture's sides.
            outpaint: Pixels of new border to draw at the left, top, right and bottom.
            strength: Of K scales the last round(strength x K) are drawn, at least one, and the others are the
                picture's own. Without a mask, for a variation of the whole picture; with one, 1 by default.
            pruning: "region" runs late scales only on tokens that the mask touches, and a margin; a plan (a
                method, or a preset's name) also prunes these, and None runs all tokens.
            margin: Known tokens around those of the mask that run with them.
            late_scales: How many scales at the end count as late.
            feather: Pixels inside of the mask's border in which old and new are blended; by default 1/64 of
                the shorter side.
            composited: Whether to put the picture's own pixels back outside of the mask, at its own size. If
                not, the result is all that the decoder drew, at the model's size.
            fit: How a picture of another shape is fitted: "crop" to the largest part that the model can draw,
                or "pad". New borders are always padded.
            call: Further arguments of a call; the size follows from the first picture unless given.

        Returns:
            The pictures, what they were made from, and a report.

        Raises:
            ValueError: When an argument is wrong, or the model cannot edit; nothing has been drawn then.
        """
        settings = EditSettings(
            mask, box, outpaint, strength, pruning, margin, late_scales, feather, composited, fit
        )
        with self.drawing():
            return run_edit(self, self._check_edit(subject, image, settings, call))

    def _check_edit(
        self, subject: Sequence[Any], image: Any, settings: EditSettings, call: dict[str, Any]
    ) -> Edit:
        call = known_arguments(type(self).__name__, call, inspect.signature(self.check).parameters)
        return check_edit(self, subject, image, settings, call)

    def _edit_summary(self, pruning: Pruning, text_tokens: int | None, call: dict[str, Any]) -> Summary:
        """What an edit with these arguments will run."""
        settings, rest = edit_arguments(call)
        edit = self._check_edit((), rest.pop("image"), replace(settings, pruning=pruning), rest)
        return summarise_edit(self, edit, text_tokens or self.usual_text_tokens)

    def resolve_pruning(self, pruning: Pruning) -> PruningMethod | None:
        """See `stepvar.pruning.presets.resolve_pruning`; the path of a plan file is read."""
        if isinstance(pruning, ChangedPreset) and is_plan_file(pruning.name):
            return changed(load_plan(pruning.name), pruning.changes, f"plan '{pruning.name}'")
        if isinstance(pruning, str | PathLike) and is_plan_file(pruning):
            return load_plan(pruning)
        return resolve_pruning(pruning, self.presets)

    def check_pruning(
        self, pruning: Pruning, schedule: ScaleSchedule, guidance: Guidance
    ) -> PruningMethod | None:
        """Resolves what a caller passed as `pruning`, and checks that it does something on a schedule.

        Raises:
            ValueError: When it is unknown, cannot be met, or is nothing for this kind of model.
        """
        method = self.resolve_pruning(pruning)
        plan = plan_generation(method, schedule, self.depth)
        check_plan(plan, method)
        check_guidance(plan, guidance)
        if plan.decides and not self.draws_previews:
            raise ValueError(
                f"{type(self).__name__} draws no previews, and the method decides by looking at one: "
                "use a method that plans ahead."
            )
        if plan.int8_cache and not self.rounds_cache:
            raise ValueError(
                f"The method holds keys and values as 8-bit integers, and {type(self).__name__} has no cache "
                "that can: leave it out."
            )
        if plan.retained and not self.remembers:
            raise ValueError(
                f"The method cuts keys and values that all later scales would see, and {type(self).__name__} "
                "keeps none of this kind: use a method that prunes tokens."
            )
        if plan.fitted_to is not None and not plan.fitted_to.describes(self.components["transformer"]):
            raise ValueError(
                "The plan's recovery was fitted for other weights than this transformer's: run 'stepvar "
                "calibrate --recovery calibrated' on this model, or take another recovery."
            )
        return method

    def features(self, request: Asked) -> tuple[Any, Any]:
        """Encoded prompts, and encoded negatives where guidance needs them and they are the caller's.

        Raises:
            ValueError: When they cannot be encoded.
        """
        positive, negative = request.inputs.embeds
        if positive is None:
            positive = self.encode(request.inputs.prompts)
        if not request.guidance.active:
            return positive, None
        if negative is None and request.inputs.negatives is not None:
            negative = self.encode(request.inputs.negatives)
        return positive, negative
