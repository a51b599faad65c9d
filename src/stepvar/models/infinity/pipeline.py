"""Text to image with Infinity."""

# No postponed annotations here: diffusers reads the component types off the constructor.

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from stepvar.generation.cascade import Cascade, cascade_costs
from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.progress import Observer
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.report import Summary
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.t5 import encode_prompts
from stepvar.models.infinity.checkpoints import check_pair
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.models.pipeline import ImageOutput, NextScalePipeline
from stepvar.models.request import Inputs, PerScale, Request, check_filters, check_temperatures

logger = logging.getLogger(__name__)


class InfinityPipeline(NextScalePipeline):
    """Draws pictures from prompts.

    Args:
        transformer: Predicts bits.
        vae: The visual tokenizer the transformer was trained with.
        text_encoder, tokenizer: T5's encoder and its tokenizer; may be left out when prompts come
            as embeddings.
        guidance_scale, temperature, top_k, top_p: Defaults of `__call__`.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.

    Source of the defaults: FoundationVision/Infinity, scripts/infer.sh and tools/run_infinity.py.
    """

    presets = PRESETS
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        transformer: InfinityTransformer,
        vae: InfinityVAE,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guidance_scale: float = 3.0,
        temperature: float = 0.5,
        top_k: int = 900,
        top_p: float = 0.97,
    ) -> None:
        super().__init__()
        check_pair(transformer, vae)
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
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
        pruning: PruningMethod | str | None = None,
        cascade: Cascade | None = None,
        prompt_embeds: Sequence[Tensor] | None = None,
        negative_prompt_embeds: Sequence[Tensor] | None = None,
        output_type: str = "pil",
        observer: Observer | None = None,
    ) -> ImageOutput:
        """Draws pictures.

        Args:
            prompt: One prompt, or several of any length.
            negative_prompt: What to steer away from: one for all, or one a prompt.
            height, width: Pixels; must be a size of the model's scale schedules.
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
            generator: One an image, instead of seeds.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            cascade: Another pipeline that draws the first scales; this one draws the others.
            prompt_embeds: One [T_i, E] a prompt, instead of prompts.
            negative_prompt_embeds: One [T_i, E] a prompt, instead of negative prompts.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            observer: Hears of every scale.

        Returns:
            The pictures, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        features = (prompt_embeds, negative_prompt_embeds)
        inputs = Inputs.of_texts(prompt, negative_prompt, features, seed, generator, num_images_per_prompt)
        schedule = self.schedule(height, width, aspect_ratio, pixel_budget)
        guidance = self._guidance(guidance_scale, guidance_layers, len(schedule))
        sampling = self._sampling(temperature, top_k, top_p, len(schedule))
        method = self.plan_method(pruning, schedule, guidance)
        if cascade is not None:
            cascade.check(self, schedule, guidance, method)
        request = Request(inputs, schedule, guidance, sampling, method, cascade)
        return self.draw(request, output_type, observer)

    def summary(
        self,
        pruning: PruningMethod | str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: float | None = None,
        pixel_budget: str | None = None,
        guidance_scale: PerScale | None = None,
        images: int = 1,
        text_tokens: int = 16,
        cascade: Cascade | None = None,
    ) -> Summary:
        """What a call with these arguments will run: tokens kept, skips, FLOPs and KV bytes a scale.

        Args:
            images: Pictures in the batch.
            text_tokens: Length of a prompt in tokens, for the cost of cross-attention.
            cascade: As in `__call__`; what is compared with is then the drafter alone.

        Raises:
            ValueError: As `__call__` would.
        """
        schedule = self.schedule(height, width, aspect_ratio, pixel_budget)
        guidance = self._guidance(guidance_scale, (0,), len(schedule))
        method = self.plan_method(pruning, schedule, guidance)
        told = self._summarise(method, schedule, guidance, images, text_tokens)
        if cascade is None:
            return told
        cascade.check(self, schedule, guidance, method)
        draft = cascade.drafter._summarise(cascade.draft, schedule, guidance, images, text_tokens)
        costs = cascade_costs(draft.costs, told.costs, cascade.scales)
        return replace(told, costs=costs, dense_costs=draft.dense_costs)

    def _summarise(
        self,
        method: PruningMethod | None,
        schedule: ScaleSchedule,
        guidance: Guidance,
        images: int,
        text_tokens: int,
    ) -> Summary:
        costs = partial(scale_costs, self.transformer, text_tokens=text_tokens)
        return self.summarise(method, schedule, guidance, images, costs)

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
            ratio = 1.0 if aspect_ratio is None else aspect_ratio
            if not ratio > 0:
                raise ValueError(f"aspect_ratio is {ratio:g}; it is width / height and must be positive.")
            schedule = table.at_aspect(1.0 / ratio, budget)
        pixels = table.pixels(schedule)
        if trained and pixels not in table.all_pixels(trained):
            logger.warning(
                "The weights were trained for %s pixels; %dx%d may look poor.",
                " and ".join(trained), pixels[1], pixels[0],
            )  # fmt: skip
        return schedule

    def _guidance(self, scale: PerScale | None, layers: Sequence[int], scales: int) -> Guidance:
        weights = per_scale(self.config.guidance_scale if scale is None else scale, scales, "guidance_scale")
        depth = len(self.transformer.blocks)
        if not layers and any(weight != 1.0 for weight in weights):
            raise ValueError(
                "guidance_layers is empty, so nothing would be guided: pass 0 for the logits, or "
                "guidance_scale=1 to draw without guidance."
            )
        for layer in layers:
            if layer > 0 or depth + layer <= 0:
                raise ValueError(
                    f"guidance_layers has {layer}; use 0 for the logits, or -1 to -{depth - 1} for a layer."
                )
        inner = frozenset(depth + layer for layer in layers if layer < 0)
        return Guidance(weights, inner, at_logits=0 in layers)

    def _sampling(
        self, temperature: PerScale | None, top_k: int | None, top_p: float | None, scales: int
    ) -> SamplingSettings:
        config = self.config
        values = per_scale(config.temperature if temperature is None else temperature, scales, "temperature")
        check_temperatures(values)
        top_k = config.top_k if top_k is None else top_k
        top_p = config.top_p if top_p is None else top_p
        check_filters(top_k, top_p)
        return SamplingSettings(values, top_k, top_p)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        self.require_text_encoder()
        length, device = self.transformer.config.text_length, self._execution_device
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, length, device)

    def sampler(self, request: Request, device: torch.device) -> BitSampler:
        bits, generators = self.transformer.config.bits, request.inputs.generators
        return BitSampler(request.sampling, request.schedule, bits, generators, device)

    def start(self, request: Request, device: torch.device) -> InfinitySession:
        positive, negative = self.features(request)
        if negative is None and request.guidance.active:
            negative = [self.transformer.unconditional_text[: len(text)] for text in positive]
        texts = [
            tuple(text for text in side or () for _ in range(request.inputs.repeats))
            for side in (positive, negative)
        ]
        self.load_to_device(self.transformer)
        return InfinitySession(
            self.transformer, TextCondition(*texts), request.schedule, self.vae.config.patchify
        )

    def own_settings(self, request: Request) -> dict[str, Any]:
        guidance, sampling = request.guidance, request.sampling
        # As `__call__` takes them: 0 for the logits, -m for the layer depth - m.
        layers = sorted(layer - len(self.transformer.blocks) for layer in guidance.layers)
        return {
            "guidance_layers": ([0] if guidance.at_logits else []) + layers,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "cascade": request.cascade and request.cascade.settings,
        }
