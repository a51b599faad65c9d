"""Text to image with Infinity."""

# No postponed annotations here: diffusers reads the component types off the constructor.

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from stepvar.generation.cascade import Cascade, cascade_costs
from stepvar.generation.guidance import Guidance
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer
from stepvar.generation.report import ScaleCost, Summary
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.arguments import with_arguments_of
from stepvar.models.common.prompt_embeds import PromptEmbeds, split_embeds
from stepvar.models.common.t5 import encode_prompts
from stepvar.models.infinity import SPEC
from stepvar.models.infinity.checkpoints import check_pair
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.models.output import CALLBACK_TENSORS, CallOptions, ImageOutput, StageTimer, StepCallback
from stepvar.models.pipeline import NextScalePipeline
from stepvar.models.request import (
    Inputs,
    PerScale,
    Request,
    check_aspect_ratio,
    check_filters,
    check_temperatures,
    numbers_per_scale,
)
from stepvar.pruning.presets import Pruning

logger = logging.getLogger(__name__)

PUBLISHED = {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 900, "top_p": 0.97}
"""Defaults of a call; FoundationVision/Infinity, scripts/infer.sh and tools/run_infinity.py."""


@dataclass(frozen=True, kw_only=True)
class InfinityRequest(Request):
    """A checked call.

    Attributes:
        sampling: How bits are drawn.
    """

    sampling: SamplingSettings


class InfinityPipeline(NextScalePipeline[InfinityRequest]):
    """Draws pictures from prompts.

    Args:
        transformer: Predicts bits.
        vae: The visual tokenizer the transformer was trained with.
        text_encoder, tokenizer: T5's encoder and its tokenizer; may be left out when prompts come
            as embeddings.
        guidance_scale, temperature, top_k, top_p: Defaults of `__call__`; None is what the transformer was
            first used with, or the published value.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.
    """

    spec = SPEC
    presets = PRESETS
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012

    transformer: InfinityTransformer
    vae: InfinityVAE

    def __init__(
        self,
        transformer: InfinityTransformer,
        vae: InfinityVAE,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        super().__init__()
        check_pair(transformer, vae)
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        given = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.register_defaults(PUBLISHED, given)

    def check(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
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
        observer: Observer | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> InfinityRequest:
        """Checks the arguments of a call, and computes nothing yet.

        Args:
            prompt: One prompt, or several of any length.
            height, width: Pixels; must be a size of the model's scale schedules.
            negative_prompt: What to steer away from: one for all, or one a prompt.
            aspect_ratio: Width / height, instead of a size; the nearest schedule is taken.
            pixel_budget: Which schedule length, "1M" for example; by default what the weights were
                trained for.
            guidance_scale: Classifier-free guidance, one number or one a scale; 1 is off.
            guidance_layers: 0 guides the logits; -m guides after layer depth - m. May be combined.
            temperature: Divides the logits, one number or one a scale.
            top_k: 1 takes the likelier bit; 0 and 2 or more change nothing.
            top_p: Drops the rarer value of a bit at probability <= 1 - top_p; 0 is off.
            num_images_per_prompt: Pictures of each prompt.
            seed: One an image, or one number s for s, s + 1, ...
            generator: Instead of seeds, one an image; a single one serves all images in turn.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            cascade: Another pipeline that draws the first scales; this one draws the others.
            prompt_embeds: Encoded prompts instead of prompts: one tensor [B, T, E], or one [T_i, E] a prompt.
            prompt_attention_mask: [B, T], where a prompt of one tensor has a token.
            negative_prompt_embeds, negative_prompt_attention_mask: Likewise, instead of negative prompts.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            return_dict: False returns the fields of the output as a tuple.
            observer: Called after every scale with its report.
            callback_on_step_end: Called as callback(pipeline, step, timestep, tensors) after every scale that
                ran; may return other latents, or set `pipeline._interrupt` to leave out the other scales.
            callback_on_step_end_tensor_inputs: What it is given: "latents", the accumulated codes.

        Returns:
            The pictures, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        sizes = (self.transformer.config.text_channels, self.text_length)
        embeds = (
            split_embeds(prompt_embeds, prompt_attention_mask, *sizes),
            split_embeds(
                negative_prompt_embeds, negative_prompt_attention_mask, *sizes, "negative_prompt_embeds"
            ),
        )
        inputs = Inputs.of_texts(prompt, negative_prompt, embeds, seed, generator, num_images_per_prompt)
        schedule = self.schedule(height, width, aspect_ratio, pixel_budget)
        guidance = self._guidance(guidance_scale, guidance_layers, len(schedule))
        method = self.check_pruning(pruning, schedule, guidance)
        if cascade is not None:
            cascade.check(self, schedule, guidance, method)
            if callback_on_step_end is not None:
                raise ValueError("callback_on_step_end is for one model, not for a cascade: pass observer.")
        return InfinityRequest(
            inputs=inputs,
            schedule=schedule,
            guidance=guidance,
            sampling=self._sampling(temperature, top_k, top_p, len(schedule)),
            method=method,
            options=CallOptions(
                output_type,
                observer,
                return_dict,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            ),
            timer=StageTimer(self._execution_device),
            cascade=cascade,
        )

    @with_arguments_of(check)
    def __call__(self, *args: Any, **kwargs: Any) -> ImageOutput:
        """Draws pictures."""
        request = self.check(*args, **kwargs)
        sampler = self.sampler(request)
        session = self.prefill(request)
        result = self.run_scales(session, sampler, request)
        return self.decode(session, result, request)

    def summarise(self, request: InfinityRequest, images: int, text_tokens: int) -> Summary:
        """As for other models; what a cascade is compared with is its drafter alone."""
        cascade = request.cascade
        own = super().summarise(request, images, text_tokens)
        if cascade is None:
            return own
        drafted = replace(request, method=cascade.draft, cascade=None)
        draft = cascade.drafter.summarise(drafted, images, text_tokens)
        costs = cascade_costs(draft.costs, own.costs, cascade.scales)
        return replace(own, costs=costs, dense_costs=draft.dense_costs)

    def scale_costs(
        self,
        request: InfinityRequest,
        plan: GenerationPlan,
        rows: Sequence[int],
        images: int,
        text_tokens: int,
    ) -> tuple[ScaleCost, ...]:
        return scale_costs(self.transformer, plan, rows, text_tokens)

    def pixels(self, schedule: ScaleSchedule) -> tuple[int, int]:
        return self.transformer.size_table.pixels(schedule)

    @property
    def text_length(self) -> int:
        return self.transformer.config.text_length

    def schedule(
        self,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
    ) -> ScaleSchedule:
        """The scale schedule of a size or an aspect ratio.

        Raises:
            ValueError: When there is none, or both are given.
        """
        table = self.transformer.size_table
        trained = self.transformer.config.budgets
        if height is not None or width is not None:
            if aspect_ratio is not None or pixel_budget is not None:
                raise ValueError("Give height and width, or aspect_ratio and pixel_budget, not both.")
            if height is None or width is None:
                raise ValueError("Give both height and width, in pixels.")
            schedule = table.at_size(height, width)
        else:
            budget = pixel_budget or (trained or list(table.budgets))[-1]
            ratio = 1.0 if aspect_ratio is None else check_aspect_ratio(aspect_ratio)
            schedule = table.at_aspect(1.0 / ratio, budget)
        pixels = table.pixels(schedule)
        if trained and pixels not in table.all_pixels(trained):
            logger.warning(
                "The weights were trained for %s pixels; %dx%d may look poor.",
                " and ".join(trained), pixels[1], pixels[0],
            )  # fmt: skip
        return schedule

    def _guidance(self, scale: PerScale | None, layers: Sequence[int], scales: int) -> Guidance:
        given = self.config["guidance_scale"] if scale is None else scale
        weights = numbers_per_scale(given, scales, "guidance_scale")
        if not layers and any(weight != 1.0 for weight in weights):
            raise ValueError(
                "guidance_layers is empty, so nothing would be guided: pass 0 for the logits, or "
                "guidance_scale=1 to draw without guidance."
            )
        for layer in layers:
            if layer > 0 or self.depth + layer <= 0:
                raise ValueError(
                    f"guidance_layers has {layer}; use 0 for the logits, or -1 to -{self.depth - 1} for a "
                    "layer."
                )
        inner = frozenset(self.depth + layer for layer in layers if layer < 0)
        return Guidance(weights, inner, at_logits=0 in layers)

    def _sampling(
        self, temperature: PerScale | None, top_k: int | None, top_p: float | None, scales: int
    ) -> SamplingSettings:
        config = self.config
        given = config["temperature"] if temperature is None else temperature
        values = numbers_per_scale(given, scales, "temperature")
        check_temperatures(values)
        top_k = config["top_k"] if top_k is None else top_k
        top_p = config["top_p"] if top_p is None else top_p
        check_filters(top_k, top_p)
        return SamplingSettings(values, top_k, top_p)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        tokenizer, text_encoder = self.text_parts()
        return encode_prompts(tokenizer, text_encoder, prompts, self.text_length, self._execution_device)

    def sampler(self, request: InfinityRequest) -> BitSampler:
        bits, generators = self.transformer.config.bits, request.inputs.generators
        with request.timer.stage("scales"):
            return BitSampler(request.sampling, request.schedule, bits, generators, self._execution_device)

    def prefill(self, request: InfinityRequest) -> InfinitySession:
        with request.timer.stage("text"):
            positive, negative = self.features(request)
            if negative is None and request.guidance.active:
                negative = [self.transformer.unconditional(len(text)) for text in positive]
            repeats = request.inputs.repeats
            condition = TextCondition(
                *(tuple(text for text in side or () for _ in range(repeats)) for side in (positive, negative))
            )
            self.load_to_device(self.transformer)
            patchify = self.vae.config.patchify
            device = self._execution_device
            return InfinitySession(self.transformer, condition, request.schedule, patchify, device)

    def own_settings(self, request: InfinityRequest) -> dict[str, Any]:
        guidance, sampling = request.guidance, request.sampling
        # As a call takes them: 0 for the logits, -m for the layer depth - m.
        layers = sorted(layer - self.depth for layer in guidance.layers)
        return {
            "guidance_layers": ([0] if guidance.at_logits else []) + layers,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "cascade": request.cascade and request.cascade.settings,
        }
