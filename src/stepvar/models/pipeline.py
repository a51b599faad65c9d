"""Base of all pipelines: from a checked request through the loop over scales to pixels and a report."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from stepvar.generation.attention import attention_kernel
from stepvar.generation.cascade import generate_in_cascade
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import Generation, Sampler, ScaleCallback, Session, generate
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import ScaleReport
from stepvar.generation.pruner import PruningMethod, plan_generation
from stepvar.generation.report import Report, ScaleCost, Summary
from stepvar.generation.sampling import CodebookChoice
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.arguments import refuse_unknown
from stepvar.models.common.attention_backends import backend_title
from stepvar.models.common.base import refuse_compiled_wrapper
from stepvar.models.output import (
    CALLBACK_TENSORS,
    ImageOutput,
    PictureProcessor,
    as_json_value,
    peak_memory,
    require_finite_pixels,
    to_output,
)
from stepvar.models.parts import TextPipeline, Transformer, VisualDecoder
from stepvar.models.request import Request, check_guidance, check_plan
from stepvar.models.spec import ModelSpec
from stepvar.pruning.presets import Preset, Pruning, resolve_pruning

_DEFAULTS = "_call_defaults"
"""Where a transformer's configuration keeps the defaults of the first pipeline that it was part of."""

_PER_PICTURE = ("seed", "generator", "negative_prompt", "negative_prompt_embeds")
"""Arguments of a call that need to know how many prompts there are."""


Asked = TypeVar("Asked", bound=Request)
"""A model's own request."""


class NextScalePipeline(TextPipeline, Generic[Asked]):
    """Base of the pipelines: one generation loop, one way to pass pruning, seeds and sizes.

    A call goes through `check` (everything wrong is said there), `sampler` and `prefill` (noise, texts, what
    is computed once), `run_scales` (the loop) and `decode` (pixels and the report). A model's own pipeline
    has the first three.

    Attributes:
        spec: What the package knows of the model.
        presets: Pruning plans by name, which `pruning` takes.
        reads_text: Whether it is called with texts; otherwise with numbers of classes.
        draws_videos: Whether results have `.frames`, and calls take `seconds`.
        draws_previews: Whether a picture can be looked at before it is finished.
        example_prompt: Something that this kind of pipeline draws.
        usual_text_tokens: Tokens of a prompt that `summary` assumes unless it is given.
    """

    spec: ClassVar[ModelSpec]
    presets: ClassVar[Mapping[str, Preset]]
    reads_text = True
    _callback_tensor_inputs: ClassVar[list[str]] = list(CALLBACK_TENSORS)
    _interrupt = False
    draws_videos = False
    draws_previews = True
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

    def scale_costs(
        self, request: Asked, plan: GenerationPlan, rows: Sequence[int], images: int, text_tokens: int
    ) -> tuple[ScaleCost, ...]:
        """What every scale of a plan costs, for so many batch rows at each."""
        raise NotImplementedError

    def own_settings(self, request: Asked) -> dict[str, Any]:
        """What the pictures of a request depend on besides what those of all models do."""
        return {}

    def register_defaults(self, published: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Registers what a call uses where it says nothing, as the pipeline's configuration.

        That is what was given (not None), else what the transformer was first used with, else what is
        published. So a second pipeline of the same components draws the same pictures.
        """
        remembered: Mapping[str, Any] = self.transformer.config.get(_DEFAULTS, {})
        defaults = {**published, **remembered}
        defaults |= {name: value for name, value in given.items() if value is not None}
        self.register_to_config(**defaults)
        if not remembered:
            self.transformer.register_to_config(**{_DEFAULTS: defaults})

    @property
    def remembers(self) -> bool:
        """Whether every scale sees all earlier ones, by keys and values that could also be forgotten."""
        return True

    @property
    def depth(self) -> int:
        """Layers of the transformer."""
        return len(self.transformer.blocks)

    def check_loaded(self) -> None:
        """Plans a dense run: settings and schedules that cannot run are refused when they are loaded."""
        self.summary()

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
        refuse_compiled_wrapper(self.transformer)
        with (
            request.timer.stage("scales"),
            attention_kernel(self.transformer.attention_kernel),
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
            changed = callback(self, report.plan.scale.index, report.plan.scale.index, tensors) or {}
            return None if self._interrupt else changed.get("latents", latent)

        return call

    @property
    def interrupt(self) -> bool:
        """Whether the scales that are left are left out; a callback sets `_interrupt`, a call resets it."""
        return self._interrupt

    def decode(self, session: Session, result: Generation, request: Asked) -> ImageOutput:
        """Pixels of the finished codes, in the form asked for, and the report of the whole call."""
        kind = request.options.output_type
        with request.timer.stage("decode"):
            images: Any = result.latent
            if kind != "latent":
                self.load_to_device(self.vae)
                images = to_output(require_finite_pixels(self.decode_codes(result.latent)), kind)
        output = ImageOutput(images=images, report=self.report(result, request))
        self.maybe_free_model_hooks()
        return request.options.packed(output)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Accumulated codes [B, d, h, w] as pixels in -1..1, as much at a time as `enable_vae_*` allow."""
        parts = codes.split(1) if self.slices_vae or self.tiles_vae else (codes,)
        options = {"in_strips": True} if self.tiles_vae else {}
        pixels = [self.vae.decode(part, **options) for part in parts]
        return torch.cat(pixels) if len(pixels) > 1 else pixels[0]

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
        refuse_unknown(type(self).__name__, call, inspect.signature(self.check).parameters)
        request = self.check(pruning=pruning, **call)
        count = request.inputs.images if images is None else images
        return self.summarise(request, count, text_tokens or self.usual_text_tokens)

    def summarise(self, request: Asked, images: int, text_tokens: int) -> Summary:
        """What a request will run and what that costs, against the dense run."""

        def costs(plan: GenerationPlan) -> tuple[ScaleCost, ...]:
            guidance, copies = request.guidance, 2 if request.guidance.active else 1
            if plan.unguided is not None:
                guidance = replace(guidance, until=(plan.unguided,) * images, remaining=plan.remaining)
            rows = [guidance.row_count(entry.scale.index, images, copies) for entry in plan.scales]
            return self.scale_costs(request, plan, rows, images, text_tokens)

        plan = plan_generation(request.method, request.schedule, self.depth)
        dense = costs(GenerationPlan.dense(request.schedule, self.depth))
        return Summary(plan, costs(plan), dense, backend_title(self.transformer.attention_backend))

    def resolve_pruning(self, pruning: Pruning) -> PruningMethod | None:
        """See `stepvar.pruning.presets.resolve_pruning`."""
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
        if plan.retained and not self.remembers:
            raise ValueError(
                f"The method cuts keys and values that all later scales would see, and {type(self).__name__} "
                "keeps none of this kind: use a method that prunes tokens."
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
