"""What the pipelines of all models share: inputs, seeds, reports, pictures."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import plan_generation
from stepvar.generation.progress import Stopwatch
from stepvar.generation.report import Report
from stepvar.generation.schedule import ScaleSchedule
from stepvar.presets import resolve_pruning
from stepvar.pruning.base import PruningMethod
from stepvar.pruning.plan import GenerationPlan

MAXIMUM_SEED = 2**63 - 1


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

    A pipeline is called with what to draw, one thing or several: texts, unless it says otherwise.

    Attributes:
        draws_videos: Whether results have `.frames`, and calls take `seconds`.
        draws_previews: Whether a picture can be looked at before it is finished.
    """

    draws_videos = False
    draws_previews = True
    example_prompt = "two yellow stars above a striped blue ring on sand"
    """Something that this kind of pipeline draws."""

    @property
    def remembers(self) -> bool:
        """Whether every scale sees all earlier ones, by keys and values that could also be forgotten."""
        return True

    @property
    def origin(self) -> str:
        """Where it was loaded from, or what it is."""
        return str(self.config.get("_name_or_path") or type(self).__name__)

    def resolve_pruning(self, pruning: PruningMethod | str | None) -> PruningMethod | None:
        """See `stepvar.presets.resolve_pruning`."""
        return resolve_pruning(pruning, type(self).__name__)

    def plan_method(
        self, pruning: PruningMethod | str | None, schedule: ScaleSchedule, guidance: Guidance
    ) -> PruningMethod | None:
        """Resolves what a caller passed as `pruning`, and checks that it does something on a schedule.

        Raises:
            ValueError: When it is unknown, or cannot be met.
        """
        method = self.resolve_pruning(pruning)
        plan = plan_generation(method, schedule, len(self.transformer.blocks))
        check_plan(plan, method)
        check_guidance(plan, guidance)
        self.check_support(plan)
        return method

    def check_support(self, plan: GenerationPlan) -> None:
        """Raises ValueError when this kind of model cannot do what a method planned."""
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

    def only_schedule(self, height: int | None, width: int | None) -> ScaleSchedule:
        """The schedule of a transformer that draws one size.

        Raises:
            ValueError: When another size is asked for.
        """
        schedule, pixels = self.transformer.schedule, self.transformer.config.pixels_per_token
        own = (schedule.final.height * pixels, schedule.final.width * pixels)
        height, width = own[0] if height is None else height, own[1] if width is None else width
        if (height, width) != own:
            raise ValueError(
                f"This model draws {own[1]}x{own[0]} pixels only, not {width}x{height}: "
                "leave the size out, or load a model of another size."
            )
        return schedule

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses what this pipeline cannot draw, or would cut, before anything is computed.

        Raises:
            ValueError: Saying what is wrong with it.
        """
        tokenizer = getattr(self, "tokenizer", None)
        if tokenizer is None or getattr(self, "text_encoder", None) is None:
            raise ValueError(
                "The model has no text encoder: convert it with 'stepvar convert --text-encoder DIR'."
            )
        longest = self.transformer.config.text_length
        for prompt in prompts:
            length = len(tokenizer(prompt, verbose=False).input_ids)
            if length > longest:
                raise ValueError(
                    f"The prompt has {length} tokens, but the model reads at most {longest}: shorten it by "
                    f"{length - longest} ({prompt[:60]!r}...)."
                )

    def preview(self, codes: Tensor) -> Tensor:
        """Draws codes [B, d, h, w] of any size as pixels in -1..1, in the middle of a generation."""
        bring_in(self.vae)
        pixels = self.vae.decode(codes)
        bring_in(self.transformer)
        return pixels

    def decode_output(self, latent: Tensor, report: Report, output_type: str) -> ImageOutput:
        """Decodes a latent, and completes the report of its generation."""
        device = latent.device
        watch = Stopwatch(device)
        watch.mark()
        if output_type != "latent":
            bring_in(self.vae)
        images = latent if output_type == "latent" else to_output(self.vae.decode(latent), output_type)
        watch.mark()
        report.stages["decode"] = watch.seconds(0)
        report.peak_bytes = peak_memory(device)
        self.maybe_free_model_hooks()
        return ImageOutput(images=images, report=report)


def as_prompts(prompt: str | Sequence[str], name: str = "prompt") -> list[str]:
    """A prompt or several, as a list without empty ones.

    Raises:
        ValueError: When there is none, or one is empty or no text.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError(f"No {name} was given.")
    for index, entry in enumerate(prompts):
        if not isinstance(entry, str) or not entry.strip():
            which = f"{name} {index + 1}" if len(prompts) > 1 else f"The {name}"
            raise ValueError(f"{which} is empty: describe the picture in words.")
    return prompts


def make_generators(
    images: int,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> tuple[list[torch.Generator], list[int | None]]:
    """One generator an image, and the seeds they were made from.

    A single seed s gives the images s, s + 1, ...; without seed or generator fresh seeds are drawn,
    and reported, so that every picture can be made again.

    Raises:
        ValueError: When the numbers do not fit, or a seed is out of range.
    """
    if generator is not None:
        given = [generator] if isinstance(generator, torch.Generator) else list(generator)
        if len(given) == 1 and images > 1:
            raise ValueError(f"{images} images need {images} generators, so that each is its own; got one.")
        if len(given) != images:
            raise ValueError(f"{images} images need {images} generators; got {len(given)}.")
        return given, [None] * images
    if seed is None:
        first = int(torch.seed() % 2**31)
        seeds = [first + index for index in range(images)]
    elif isinstance(seed, int):
        seeds = [seed + index for index in range(images)]
    else:
        seeds = [int(value) for value in seed]
    if len(seeds) != images:
        raise ValueError(f"{images} images need {images} seeds; got {len(seeds)}.")
    for value in seeds:
        if not 0 <= value <= MAXIMUM_SEED:
            raise ValueError(f"The seed {value} is out of range: use 0 to {MAXIMUM_SEED}.")
    return [torch.Generator().manual_seed(value) for value in seeds], list(seeds)


def rows_per_scale(guidance: Guidance, images: int, copies: int, plan: GenerationPlan) -> list[int]:
    """Batch rows that each scale computes, of a plan that may end guidance early."""
    if plan.unguided is not None:
        guidance = replace(guidance, until=(plan.unguided,) * images)
    return [guidance.rows(entry.scale.index, images, copies) for entry in plan.scales]


def bring_in(part: nn.Module) -> None:
    """Moves a part onto its device where offloading moves it at the call of its `forward`.

    The loop calls the layers of a transformer one by one, so nobody else would.
    """
    hook = getattr(part, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(part)


def check_plan(plan: GenerationPlan, method: PruningMethod | None) -> None:
    """Raises ValueError when a pruning method would not change anything although it names scales."""
    if method is not None and not plan.changes and not getattr(method, "ratios", None):
        raise ValueError(
            "Pruning was asked for, but it names no scale to prune or skip: "
            "give ratios such as {-1: 0.5}, or scales to skip, or pass pruning=None."
        )


def check_guidance(plan: GenerationPlan, guidance: Guidance) -> None:
    """Raises ValueError when a plan drops guidance where there is none."""
    if plan.unguided is None:
        return
    late = [entry for entry in plan.scales[plan.unguided :] if not entry.skipped]
    if not guidance.active or not any(guidance.guides(entry.scale.index) for entry in late):
        raise ValueError(
            f"Guidance was to be dropped from scale {plan[plan.unguided].scale} on, but no scale that runs "
            "is guided there: leave it out, or guide those scales."
        )


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak memory where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the device on CUDA, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
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


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def describe(value: Any) -> Any:
    """A setting in a form that JSON can hold."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [describe(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        fields = {name: describe(getattr(value, name)) for name in value.__dataclass_fields__}
        return {"method": type(value).__name__, **fields}
    return str(value)
