"""The one road that the pipelines of all models go: from a checked request to pictures and a report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from stepvar.generation.cascade import generate_in_cascade
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import Sampler, Session, generate, plan_generation
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer, Stopwatch
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.report import Report, ScaleCost, Summary
from stepvar.generation.sampling import CodebookChoice
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.t5 import refuse_unknown_words
from stepvar.models.request import Request, check_guidance, check_plan
from stepvar.pruning.presets import ChangedPreset, Preset, resolve_pruning
from stepvar.pruning.stepvar import StepVAR

if TYPE_CHECKING:
    from typing_extensions import Self

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Costs = Callable[[GenerationPlan, Sequence[int]], tuple[ScaleCost, ...]]
"""What every scale of a plan costs, for so many batch rows at each."""


@dataclass
class ImageOutput(BaseOutput):
    """Result of a pipeline that draws pictures.

    Attributes:
        images: PIL pictures, or an array [B, H, W, 3] / tensor [B, 3, H, W] in 0..1 on request.
        report: What ran, what it kept, how long it took.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    report: Report


class NextScalePipeline(DiffusionPipeline):
    """Base of the pipelines: one generation loop, one way to pass pruning, seeds and sizes.

    A pipeline is called with what to draw, one thing or several: texts, unless it says otherwise. A model's
    own has a `__call__` and a `summary`, and tells how it encodes texts, starts a session and draws values.

    Attributes:
        presets: Pruning plans by name, which `pruning=` accepts.
        draws_videos: Whether results have `.frames`, and calls take `seconds`.
        reads_text: Whether it is called with texts; otherwise with numbers of classes.
        draws_previews: Whether a picture can be looked at before it is finished.
        remembers: Whether every scale sees all earlier ones, by keys and values that could also be forgotten.
        streams_layers: Whether it can run with layers that come to the device one by one.
    """

    presets: ClassVar[Mapping[str, Preset]] = MappingProxyType({})
    draws_videos = False
    reads_text = True
    draws_previews = True
    remembers = True
    streams_layers = False
    example_prompt = "two yellow stars above a striped blue ring on sand"
    """Something that this kind of pipeline draws."""

    def encode(self, prompts: Sequence[str]) -> Any:
        """Features of texts, one a text."""
        raise NotImplementedError

    def start(self, request: Request, device: torch.device) -> Session:
        """Encodes what a request asks for and starts the model on it."""
        raise NotImplementedError

    def sampler(self, request: Request, device: torch.device) -> Sampler:
        """Draws the values of a request."""
        raise NotImplementedError

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers, but parts that a model keeps in float32 stay exact in every number format."""
        exact = [entry for part in self.components.values() for entry in _exact_tensors(part)]
        moved = super().to(*args, **kwargs)
        for owner, name, values in exact:
            tensor = getattr(owner, name)
            if tensor.dtype != values.dtype:
                tensor.data = values.to(tensor.device)
        return moved

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Moves layer by layer to the device, where a model can run like that.

        Raises:
            ValueError: When it cannot.
        """
        if not self.streams_layers:
            raise ValueError(
                f"{type(self).__name__} cannot move layer by layer: use enable_model_cpu_offload(), which "
                "moves part by part."
            )
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def load_to_device(self, part: nn.Module) -> None:
        """Moves a part onto its device, and the others away, where offloading does so at their `forward`.

        The loop calls the layers of a transformer one by one, so nobody else would.
        """
        hook = getattr(part, "_hf_hook", None)
        if hook is None:
            return
        for other in getattr(self, "_all_hooks", []):
            if other.model is not part:
                other.offload()
        hook.pre_forward(part)

    @property
    def origin(self) -> str:
        """Where it was loaded from, or what it is."""
        return str(self.config.get("_name_or_path") or type(self).__name__)

    def frames_of(self, scale: Any) -> tuple[int, ...]:
        """Which frames the maps of a scale stand for, one a map; a picture is frame 0."""
        return (0,)

    def resolve_pruning(
        self, pruning: PruningMethod | Preset | ChangedPreset | str | None
    ) -> PruningMethod | None:
        """See `stepvar.pruning.presets.resolve_pruning`."""
        return resolve_pruning(pruning, self.presets)

    def plan_method(
        self, pruning: PruningMethod | str | None, schedule: ScaleSchedule, guidance: Guidance
    ) -> PruningMethod | None:
        """Resolves what a caller passed as `pruning`, and checks that it does something on a schedule.

        Raises:
            ValueError: When it is unknown, cannot be met, or is nothing for this kind of model.
        """
        method = self.resolve_pruning(pruning)
        plan = plan_generation(method, schedule, len(self.transformer.blocks))
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

    def summarise(
        self,
        method: PruningMethod | None,
        schedule: ScaleSchedule,
        guidance: Guidance,
        images: int,
        costs: Costs,
    ) -> Summary:
        """What a method will run and what that costs, against the dense run."""

        def told(plan: GenerationPlan) -> tuple[ScaleCost, ...]:
            ended = guidance if plan.unguided is None else replace(guidance, until=(plan.unguided,) * images)
            copies = 2 if guidance.active else 1
            return costs(plan, [ended.rows(entry.scale.index, images, copies) for entry in plan.scales])

        depth = len(self.transformer.blocks)
        plan = plan_generation(method, schedule, depth)
        return Summary(plan, told(plan), told(GenerationPlan.dense(schedule, depth)))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses what this pipeline cannot draw, or would cut, before anything is computed.

        Raises:
            ValueError: Saying what is wrong with it.
        """
        self.require_text_encoder()
        longest = self.transformer.config.text_length
        for prompt in prompts:
            ids = self.tokenizer(prompt, verbose=False).input_ids
            length = len(ids)
            refuse_unknown_words(self.tokenizer, prompt, ids)
            if length > longest:
                raise ValueError(
                    f"The prompt has {length} tokens, but the model reads at most {longest}: shorten it by "
                    f"{length - longest} ({prompt[:60]!r}...)."
                )

    def require_text_encoder(self) -> None:
        """Raises ValueError when there is nothing that could encode a text."""
        if any(getattr(self, name) is None for name in self._optional_components):
            raise ValueError(
                "This pipeline has no text encoder: pass encoded prompts, or convert the model with "
                "'stepvar convert --text-encoder DIR'."
            )

    def features(self, request: Request) -> tuple[Any, Any]:
        """Encoded prompts, and encoded negatives where guidance needs them and they are the caller's.

        Raises:
            ValueError: When they cannot be encoded.
        """
        positive, negative = request.inputs.features
        if positive is None:
            positive = self.encode(request.inputs.prompts)
        if not request.guidance.active:
            return positive, None
        if negative is None and request.inputs.negatives is not None:
            negative = self.encode(request.inputs.negatives)
        return positive, negative

    def draw(self, request: Request, output_type: str, observer: Observer | None) -> ImageOutput:
        """Carries out a request for pictures.

        Raises:
            ValueError: When the output type is unknown, or the texts cannot be encoded.
        """
        check_output_type(output_type)
        reset_peak_memory(self._execution_device)
        session, report = self.run(request, observer)
        report.settings = self.settings(request)
        return self.decode_output(session.latent, report, output_type)

    def run(self, request: Request, observer: Observer | None) -> tuple[Session, Report]:
        """Carries out a request but for the decoding.

        Returns:
            The session after the last scale, and a report that lacks settings, decoding and memory.
        """
        device, cascade = self._execution_device, request.cascade
        watch = Stopwatch(device)
        watch.mark()
        # The noise of the loop comes first: what else a model draws must not move it.
        sampler = self.sampler(request, device)
        watch.mark()
        session = self.start(request, device)
        draft = cascade and cascade.drafter.start(request, device)
        watch.mark()
        settings = {
            "guidance": request.guidance,
            "sampler": sampler,
            "pruning": request.method,
            "observer": observer,
            "preview": self.preview,
        }
        if cascade is None:
            result = generate(session, **settings)
        else:
            result = generate_in_cascade(draft, session, cascade.scales, **settings)
            cascade.drafter.maybe_free_model_hooks()
        watch.mark()
        stages = {"text": watch.seconds(1), "scales": watch.seconds(0) + watch.seconds(2)}
        choices = {
            scale: choice.index if isinstance(choice, CodebookChoice) else choice
            for scale, choice in result.choices.items()
        }
        seeds = request.inputs.seeds
        return session, Report(result.scales, stages, result.cache_bytes, 0, seeds, choices=choices)

    def settings(self, request: Request) -> dict[str, Any]:
        """What the pictures of a request depend on, in a form that JSON can hold."""
        inputs, (height, width) = request.inputs, self.pixels(request.schedule)
        negatives = {} if inputs.negatives is None else {"negative_prompts": inputs.negatives}
        return describe(
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

    def pixels(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """Height and width of what a schedule draws."""
        side, final = self.transformer.config.pixels_per_token, schedule.final
        return final.height * side, final.width * side

    def own_settings(self, request: Request) -> dict[str, Any]:
        """What they depend on besides, or in the model's own terms."""
        return {}

    def preview(self, codes: Tensor) -> Tensor:
        """Draws codes [B, d, h, w] of any size as pixels in -1..1, in the middle of a generation."""
        self.load_to_device(self.vae)
        pixels = self.vae.decode(codes)
        self.load_to_device(self.transformer)
        return pixels

    def decode_output(self, latent: Tensor, report: Report, output_type: str) -> ImageOutput:
        """Decodes a latent, and completes the report of its generation."""
        device = latent.device
        watch = Stopwatch(device)
        watch.mark()
        if output_type != "latent":
            self.load_to_device(self.vae)
        images = latent if output_type == "latent" else to_output(self.vae.decode(latent), output_type)
        watch.mark()
        report.stages["decode"] = watch.seconds(0)
        report.peak_bytes = peak_memory(device)
        self.maybe_free_model_hooks()
        return ImageOutput(images=images, report=report)


def _exact_tensors(part: Any) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Owner, name and values of what stays in float32 whatever the rest of a part is cast to."""
    names = set(getattr(part, "_keep_in_fp32_modules", None) or ()) if isinstance(part, nn.Module) else set()
    if not names:
        return
    for name, tensor in chain(part.named_parameters(), part.named_buffers()):
        if names & set(name.split(".")) and tensor.dtype == torch.float32:
            owner, _, leaf = name.rpartition(".")
            yield part.get_submodule(owner), leaf, tensor.data


def check_output_type(output_type: str) -> None:
    """Raises ValueError when there is no such form of pictures."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"Unknown output_type {output_type!r}; known are {', '.join(OUTPUT_TYPES)}.")


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak memory where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the device on CUDA, of this process elsewhere; 0 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def to_output(pixels: Tensor, kind: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Pixels [B, 3, H, W] in -1..1 as "pil" pictures, "np" array or "pt" tensor in 0..1."""
    scaled = (pixels.float() + 1.0) / 2.0
    if kind == "pt":
        return scaled
    if kind == "np":
        return scaled.permute(0, 2, 3, 1).cpu().numpy()
    # Truncation, as the official code converts.
    bytes_ = (scaled * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in bytes_]


def describe(value: Any) -> Any:
    """A setting in a form that JSON can hold."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [describe(entry) for entry in value]
    if isinstance(value, StepVAR):
        return {"method": "StepVAR", **describe(value.settings())}
    if hasattr(value, "__dataclass_fields__"):
        fields = {name: describe(getattr(value, name)) for name in value.__dataclass_fields__}
        return {"method": type(value).__name__, **fields}
    return str(value)
