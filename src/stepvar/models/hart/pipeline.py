"""Text to image with HART."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate, plan_generation
from stepvar.generation.progress import Observer, Stopwatch
from stepvar.generation.report import Report, Summary
from stepvar.generation.sampling import CodebookSampler, CodebookSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.hart.checkpoints import check_pair
from stepvar.models.hart.cost import scale_costs
from stepvar.models.hart.sampling import PerScale, make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import draw_orders, scale_schedule
from stepvar.models.hart.text import ContextFeatures, encode_prompts
from stepvar.models.hart.tokenizer import HARTTokenizer
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.pipeline import (
    OUTPUT_TYPES,
    ImageOutput,
    NextScalePipeline,
    as_prompts,
    bring_in,
    describe,
    make_generators,
    reset_peak_memory,
    rows_per_scale,
)
from stepvar.pruning.base import PruningMethod

RESIDUALS = ("all", "kept", "none")
"""Where the diffusion head draws residuals: everywhere, where the transformer ran, or nowhere."""


@dataclass(frozen=True)
class _Request:
    """Checked inputs of one call: nothing has been computed yet."""

    prompts: list[str]
    negatives: list[str] | None
    schedule: ScaleSchedule
    guidance: Guidance
    sampling: CodebookSettings
    residual: str
    method: PruningMethod | None
    generators: list[torch.Generator]
    seeds: list[int | None]


class HARTPipeline(NextScalePipeline):
    """Draws pictures from prompts.

    Args:
        transformer: Predicts codes, and draws what they leave over.
        vae: The visual tokenizer the transformer was trained with.
        text_encoder, tokenizer: The Qwen2 language model and its tokenizer; may be left out when prompts
            come as embeddings.
        guidance_scale, top_k, top_p, smooth: Defaults of `__call__`.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.

    Source of the defaults: mit-han-lab/hart, sample.py.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        transformer: HARTTransformer,
        vae: HARTTokenizer,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guidance_scale: float = 4.5,
        top_k: int | None = None,
        top_p: float = 0.0,
        smooth: bool = True,
    ) -> None:
        super().__init__()
        check_pair(transformer, vae)
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(guidance_scale=guidance_scale, top_k=top_k, top_p=top_p, smooth=smooth)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: PerScale | None = None,
        temperature: PerScale | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool | None = None,
        residual: str = "all",
        parts: int = 1,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        pruning: PruningMethod | str | None = None,
        prompt_embeds: ContextFeatures | None = None,
        negative_prompt_embeds: ContextFeatures | None = None,
        output_type: str = "pil",
        observer: Observer | None = None,
    ) -> ImageOutput:
        """Draws pictures.

        Args:
            prompt: One prompt, or several of any length.
            negative_prompt: What to steer away from: one for all, or one a prompt; by default nothing, which
                the model knows as zeros.
            height, width: Pixels; every model draws one size.
            guidance_scale: Classifier-free guidance g of (1 + g) x conditional - g x unconditional; one
                number, which is reached along the scales from 0 on, or one a scale. 0 is off.
            temperature: Divides the logits, one number or one a scale; 1 by default.
            top_k: Draws from so many codes; by default 600, and 300 from the eighth scale on. 1 takes the
                likeliest, 0 is off.
            top_p: Then drops the rarest codes with a share of 1 - top_p together; 0 is off.
            smooth: Mixes codes instead of picking one: smoother pictures, as the official scripts draw.
            residual: Where the diffusion head adds what codes leave over: "all" positions, "kept" ones
                only (after pruning, faster), or "none".
            parts: Steps in which the last map is drawn; later ones see the codes' places of earlier ones.
            num_images_per_prompt: Pictures of each prompt.
            seed: One an image, or one number s for s, s + 1, ...
            generator: One an image, instead of seeds.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            prompt_embeds: Encoded prompts, instead of prompts; see `encode_prompts`.
            negative_prompt_embeds: Likewise.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            observer: Hears of every scale.

        Returns:
            The pictures, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"Unknown output_type {output_type!r}; known are {', '.join(OUTPUT_TYPES)}.")
        _require_known(residual)
        prompts = [""] * len(prompt_embeds) if prompt_embeds is not None else as_prompts(prompt or "")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; it must be 1 or more.")
        config, schedule = self.config, self.schedule(height, width, parts)
        generators, seeds = make_generators(len(prompts) * num_images_per_prompt, seed, generator)
        guidance = make_guidance(
            config.guidance_scale if guidance_scale is None else guidance_scale, schedule
        )
        request = _Request(
            prompts,
            self._negatives(negative_prompt, len(prompts)),
            schedule,
            guidance,
            make_sampling(
                schedule,
                1.0 if temperature is None else temperature,
                config.top_k if top_k is None else top_k,
                config.top_p if top_p is None else top_p,
                config.smooth if smooth is None else smooth,
            ),
            residual,
            self.plan_method(pruning, schedule, guidance),
            generators,
            seeds,
        )
        embeds = (prompt_embeds, negative_prompt_embeds)
        latent, report = self._generate(request, num_images_per_prompt, embeds, observer)
        return self.decode_output(latent, report, output_type)

    def summary(
        self,
        pruning: PruningMethod | str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: PerScale | None = None,
        residual: str = "all",
        parts: int = 1,
        images: int = 1,
    ) -> Summary:
        """What a call with these arguments will run: tokens kept, skips, FLOPs and KV bytes a scale.

        Args:
            images: Pictures in the batch.

        Raises:
            ValueError: As `__call__` would.
        """
        _require_known(residual)
        schedule = self.schedule(height, width, parts)
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        guidance = make_guidance(scale, schedule)
        method = self.plan_method(pruning, schedule, guidance)
        depth, copies = len(self.transformer.blocks), 2 if guidance.active else 1
        plan, dense = plan_generation(method, schedule, depth), plan_generation(None, schedule, depth)
        rows, dense_rows = (rows_per_scale(guidance, images, copies, one) for one in (plan, dense))
        head_copies = 1 if guidance.weights[-1] in (1.0, 2.0) else 2
        everywhere = "none" if residual == "none" else "all"
        return Summary(
            plan,
            scale_costs(self.transformer, plan, rows, images, residual, head_copies),
            scale_costs(self.transformer, dense, dense_rows, images, everywhere, head_copies),
        )

    def schedule(self, height: int | None = None, width: int | None = None, parts: int = 1) -> ScaleSchedule:
        """The model's one scale schedule, with the last map in so many parts.

        Raises:
            ValueError: When another size, or too many parts are asked for.
        """
        whole = self.only_schedule(height, width)
        return scale_schedule([(scale.height, scale.width) for scale in whole], parts)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts when there is nothing that could encode them; long ones are cut, with a warning."""
        self._require_text_encoder()

    def _negatives(self, negative: str | Sequence[str] | None, prompts: int) -> list[str] | None:
        if negative is None or negative == "":
            return None
        negatives = as_prompts(negative, "negative prompt")
        if len(negatives) == 1:
            negatives *= prompts
        if len(negatives) != prompts:
            raise ValueError(
                f"{prompts} prompts need one negative prompt, or {prompts}; got {len(negatives)}."
            )
        return negatives

    def _generate(
        self,
        request: _Request,
        repeats: int,
        embeds: tuple[ContextFeatures | None, ContextFeatures | None],
        observer: Observer | None,
    ) -> tuple[Tensor, Report]:
        device = self._execution_device
        reset_peak_memory(device)
        watch = Stopwatch(device)
        watch.mark()
        condition = self._condition(request, repeats, embeds, device)
        watch.mark()
        bring_in(self.transformer)
        # Offloading moves a component when it is called, and the quantiser is used before its tokenizer is.
        quantizer, generators = self.vae.quantizer.to(device), request.generators
        sampler = CodebookSampler(
            request.sampling, request.schedule, quantizer.codebook.weight, generators, device
        )
        session = HARTSession(
            self.transformer,
            quantizer,
            condition,
            len(generators),
            request.schedule,
            self._residual(request, device),
            draw_orders(generators, request.schedule.final, device),
        )
        result = generate(
            session,
            guidance=request.guidance,
            sampler=sampler,
            pruning=request.method,
            observer=observer,
            preview=self.preview,
        )
        watch.mark()
        stages = {"text": watch.seconds(0), "scales": watch.seconds(1)}
        report = Report(
            result.scales,
            stages,
            result.cache_bytes,
            0,
            request.seeds,
            self._settings(request),
            {scale: choice.index for scale, choice in result.choices.items()},
        )
        return result.latent, report

    def _residual(self, request: _Request, device: torch.device) -> ResidualDraw | None:
        """How residuals are drawn; their noise is drawn in any case, so that it moves no other noise."""
        final = request.schedule.final
        noise = draw_residual_noise(
            request.generators,
            final.height * final.width,
            self.transformer.config.latent_channels,
            len(self.transformer.residual_head.schedule),
            device,
        )
        if request.residual == "none":
            return None
        return ResidualDraw(noise, request.guidance.weights[-1] - 1.0, request.residual == "all")

    def _condition(
        self,
        request: _Request,
        repeats: int,
        embeds: tuple[ContextFeatures | None, ContextFeatures | None],
        device: torch.device,
    ) -> ContextFeatures:
        """Context of every row, conditional rows first."""
        positive = embeds[0] if embeds[0] is not None else self._encode(request.prompts, device)
        config = self.transformer.config
        if positive.features.shape[1:] != (config.context_tokens, config.context_channels):
            raise ValueError(
                f"The embedded prompts are {list(positive.features.shape[1:])} each; the model reads "
                f"{config.context_tokens} tokens of {config.context_channels} channels."
            )
        positive = positive.repeat(repeats)
        if not request.guidance.active:
            return positive
        if embeds[1] is None and request.negatives is None:
            return positive.joined(ContextFeatures.empty(*positive.features.shape, positive.features.device))
        negative = embeds[1] if embeds[1] is not None else self._encode(request.negatives or [], device)
        negative = negative.repeat(repeats)
        if negative.features.shape != positive.features.shape:
            raise ValueError(
                f"The embedded negative prompts are {list(negative.features.shape)} in all, but the prompts "
                f"{list(positive.features.shape)}."
            )
        return positive.joined(negative)

    def _encode(self, prompts: Sequence[str], device: torch.device) -> ContextFeatures:
        self._require_text_encoder()
        return encode_prompts(
            self.tokenizer, self.text_encoder, prompts, self.transformer.config.context_tokens, device
        )

    def _require_text_encoder(self) -> None:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "The model has no text encoder: pass prompt_embeds, or convert it with "
                "'stepvar convert --text-encoder DIR'."
            )

    def _settings(self, request: _Request) -> dict[str, Any]:
        side = self.transformer.config.sides[-1] * self.transformer.config.pixels_per_token
        return describe(
            {
                "model": self.origin,
                "prompts": request.prompts,
                "negative_prompts": request.negatives,
                "width": side,
                "height": side,
                "guidance_scale": [weight - 1.0 for weight in request.guidance.weights],
                "temperature": request.sampling.temperature,
                "top_k": request.sampling.top_k,
                "top_p": request.sampling.top_p,
                "smooth": request.sampling.smoothing[0] is not None,
                "residual": request.residual,
                "parts": sum(scale.part is not None for scale in request.schedule) or 1,
                "pruning": request.method,
                "dtype": str(self.transformer.compute_dtype).removeprefix("torch."),
            }
        )


def _require_known(residual: str) -> None:
    if residual not in RESIDUALS:
        raise ValueError(f"Unknown residual {residual!r}; known are {', '.join(RESIDUALS)}.")
