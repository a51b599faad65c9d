"""Base of the pipelines on Infinity's transformer: Infinity itself, and VAREdit."""

# No postponed annotations here: diffusers reads the component types off the constructor.

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from stepvar.generation.cascade import Cascade, cascade_costs
from stepvar.generation.guidance import Guidance
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.report import ScaleCost, Summary
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.prompt_embeds import PromptEmbeds, split_embeds
from stepvar.models.common.t5 import encode_prompts
from stepvar.models.infinity.checkpoints import check_pair
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.session import TextCondition
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.models.output import CallOptions, StageTimer
from stepvar.models.pipeline import NextScalePipeline
from stepvar.models.request import (
    Inputs,
    PerScale,
    Request,
    check_aspect_ratio,
    check_filters,
    check_pixels,
    check_temperatures,
    numbers_per_scale,
)
from stepvar.pruning.presets import Pruning

logger = logging.getLogger(__name__)

GivenEmbeds = tuple[PromptEmbeds | None, Tensor | None]
"""Encoded texts of a call, and the mask of those in one tensor."""


@dataclass(frozen=True, kw_only=True)
class BitsRequest(Request):
    """A checked call.

    Attributes:
        sampling: How bits are drawn.
    """

    sampling: SamplingSettings


AskedBits = TypeVar("AskedBits", bound=BitsRequest)


class InfinityBasePipeline(NextScalePipeline[AskedBits], Generic[AskedBits]):
    """What all pipelines on Infinity's transformer share: parts, sizes, texts, guidance and sampling.

    Args:
        transformer: Predicts bits.
        vae: The visual tokenizer the transformer was trained with.
        text_encoder, tokenizer: T5's encoder and its tokenizer; may be left out when prompts come
            as embeddings.
        guidance_scale, temperature, top_k, top_p: Defaults of `__call__`; None is what the transformer was
            first used with, or the published value.

    Attributes:
        published: Published defaults of a call.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.
    """

    published: ClassVar[Mapping[str, Any]]
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
        self.register_defaults(self.published, given)

    def inputs(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        embeds: GivenEmbeds,
        negative_embeds: GivenEmbeds,
        seed: int | Sequence[int] | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        repeats: int,
    ) -> Inputs:
        """Texts or encoded texts of a call, checked, with a generator for each picture.

        Raises:
            ValueError: When one is missing, of another shape, or the numbers do not fit.
        """
        sizes = (self.transformer.config.text_channels, self.text_length)
        given = (
            split_embeds(*embeds, *sizes),
            split_embeds(*negative_embeds, *sizes, "negative_prompt_embeds"),
        )
        return Inputs.of_texts(prompt, negative_prompt, given, seed, generator, repeats)

    def request_fields(
        self,
        inputs: Inputs,
        schedule: ScaleSchedule,
        options: CallOptions,
        *,
        guidance_scale: PerScale | None,
        guidance_layers: Sequence[int],
        temperature: PerScale | None,
        top_k: int | None,
        top_p: float | None,
        pruning: Pruning,
        cascade: Cascade | None,
    ) -> dict[str, Any]:
        """Fields of a `BitsRequest`, from arguments of a call.

        Raises:
            ValueError: When one is wrong, or they do not fit each other.
        """
        guidance = self.guidance(guidance_scale, guidance_layers, len(schedule))
        method = self.check_pruning(pruning, schedule, guidance)
        if cascade is not None:
            if not isinstance(cascade, Cascade):
                raise ValueError(f"cascade is of type {type(cascade).__name__}; give a Cascade.")
            cascade.check(self, schedule, guidance, method)
            if options.callback is not None:
                raise ValueError(
                    "callback_on_step_end cannot change a cascade: its second model reads the codes that the "
                    "first one drew, not the latents; pass observer to watch both."
                )
        return {
            "inputs": inputs,
            "schedule": schedule,
            "guidance": guidance,
            "sampling": self.sampling(temperature, top_k, top_p, len(schedule)),
            "method": method,
            "options": options,
            "timer": StageTimer(self._execution_device),
            "cascade": cascade,
        }

    def summarise(self, request: AskedBits, images: int, text_tokens: int) -> Summary:
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
        request: AskedBits,
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
        check_pixels(height, width)
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
        self.check_trained(schedule)
        return schedule

    def check_trained(self, schedule: ScaleSchedule) -> None:
        """Says so when the weights were trained for other sizes."""
        trained, table = self.transformer.config.budgets, self.transformer.size_table
        height, width = table.pixels(schedule)
        if trained and (height, width) not in table.all_pixels(trained):
            logger.warning(
                "The weights were trained for %s pixels; %dx%d may look poor.",
                " and ".join(trained), width, height,
            )  # fmt: skip

    def guidance(self, scale: PerScale | None, layers: Sequence[int], scales: int) -> Guidance:
        """Guidance of so many scales.

        Raises:
            ValueError: When a number is not finite, or a layer does not exist.
        """
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

    def sampling(
        self, temperature: PerScale | None, top_k: int | None, top_p: float | None, scales: int
    ) -> SamplingSettings:
        """How the bits of so many scales are drawn.

        Raises:
            ValueError: When a number is out of range.
        """
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

    def sampler(self, request: AskedBits) -> BitSampler:
        bits, generators = self.transformer.config.bits, request.inputs.generators
        with request.timer.stage("scales"):
            return BitSampler(request.sampling, request.schedule, bits, generators, self._execution_device)

    def condition(self, request: AskedBits, texts: tuple[Any, Any]) -> TextCondition:
        """Encoded texts of every row.

        Args:
            texts: What `features` gave.
        """
        positive, negative = texts
        if negative is None and request.guidance.active:
            negative = [self.transformer.unconditional(len(text)) for text in positive]
        sides = (positive, negative or ())
        return TextCondition(
            *(tuple(text for text in side for _ in range(request.inputs.repeats)) for side in sides)
        )

    def own_settings(self, request: AskedBits) -> dict[str, Any]:
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
