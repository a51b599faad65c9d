"""Text to image with HART."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepvar.generation.guidance import Guidance
from stepvar.generation.progress import Observer
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.report import Summary
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.codebook_pipeline import CodebookPipeline
from stepvar.models.hart.checkpoints import check_pair
from stepvar.models.hart.costs import scale_costs
from stepvar.models.hart.presets import PRESETS
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import draw_orders, scale_schedule
from stepvar.models.hart.text import ContextFeatures, encode_prompts
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.hart.vae import HARTVAE
from stepvar.models.pipeline import ImageOutput
from stepvar.models.request import Inputs, PerScale, Request

RESIDUALS = ("all", "kept", "none")
"""Where the diffusion head draws residuals: everywhere, where the transformer ran, or nowhere."""


@dataclass(frozen=True, kw_only=True)
class HARTRequest(Request):
    """A checked call.

    Attributes:
        residual: One of `RESIDUALS`.
    """

    residual: str


class HARTPipeline(CodebookPipeline):
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

    presets = PRESETS
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        transformer: HARTTransformer,
        vae: HARTVAE,
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
        _require_known(residual)
        features = (prompt_embeds, negative_prompt_embeds)
        inputs = Inputs.of_texts(prompt, negative_prompt, features, seed, generator, num_images_per_prompt)
        config, schedule = self.config, self.schedule(height, width, parts)
        guidance = self._guidance(guidance_scale, schedule)
        sampling = make_sampling(
            schedule,
            1.0 if temperature is None else temperature,
            config.top_k if top_k is None else top_k,
            config.top_p if top_p is None else top_p,
            config.smooth if smooth is None else smooth,
        )
        method = self.plan_method(pruning, schedule, guidance)
        request = HARTRequest(inputs, schedule, guidance, sampling, method, residual=residual)
        return self.draw(request, output_type, observer)

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
        guidance = self._guidance(guidance_scale, schedule)
        method = self.plan_method(pruning, schedule, guidance)
        copies = 1 if guidance.weights[-1] in (1.0, 2.0) else 2
        costs = partial(
            scale_costs, self.transformer, images=images, residual=residual, residual_copies=copies
        )
        return self.summarise(method, schedule, guidance, images, costs)

    def schedule(self, height: int | None = None, width: int | None = None, parts: int = 1) -> ScaleSchedule:
        """The model's one scale schedule, with the last map in so many parts.

        Raises:
            ValueError: When another size, or too many parts are asked for.
        """
        whole = super().schedule(height, width)
        return scale_schedule([(scale.height, scale.width) for scale in whole], parts)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts when there is nothing that could encode them; long ones are cut, with a warning."""
        self.require_text_encoder()

    def _guidance(self, scale: PerScale | None, schedule: ScaleSchedule) -> Guidance:
        return make_guidance(self.config.guidance_scale if scale is None else scale, schedule)

    def encode(self, prompts: Sequence[str]) -> ContextFeatures:
        self.require_text_encoder()
        length, device = self.transformer.config.context_tokens, self._execution_device
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, length, device)

    def start(self, request: HARTRequest, device: torch.device) -> HARTSession:
        inputs, final = request.inputs, request.schedule.final
        condition = self._condition(request)
        self.load_to_device(self.transformer)
        return HARTSession(
            self.transformer,
            self.quantizer(device),
            condition,
            inputs.images,
            request.schedule,
            self._residual(request, device),
            draw_orders(inputs.generators, final, device),
        )

    def _residual(self, request: HARTRequest, device: torch.device) -> ResidualDraw | None:
        """How residuals are drawn; their noise is drawn in any case, so that it moves no other noise."""
        final, head = request.schedule.final, self.transformer.residual_head
        tokens, channels = final.height * final.width, self.transformer.config.latent_channels
        noise = draw_residual_noise(request.inputs.generators, tokens, channels, len(head.schedule), device)
        if request.residual == "none":
            return None
        return ResidualDraw(noise, request.guidance.weights[-1] - 1.0, request.residual == "all")

    def _condition(self, request: HARTRequest) -> ContextFeatures:
        """Context of every row, conditional rows first."""
        positive, negative = self.features(request)
        for given in (positive, negative):
            self._require_shape(given)
        positive = positive.repeat(request.inputs.repeats)
        if not request.guidance.active:
            return positive
        if negative is None:
            return positive.joined(ContextFeatures.empty(*positive.features.shape, positive.features.device))
        return positive.joined(negative.repeat(request.inputs.repeats))

    def _require_shape(self, given: ContextFeatures | None) -> None:
        config = self.transformer.config
        wanted = (config.context_tokens, config.context_channels)
        if given is not None and given.features.shape[1:] != wanted:
            raise ValueError(
                f"The embedded prompts are {list(given.features.shape[1:])} each; the model reads "
                f"{config.context_tokens} tokens of {config.context_channels} channels."
            )

    def own_settings(self, request: HARTRequest) -> dict[str, Any]:
        sampling = request.sampling
        return {
            **super().own_settings(request),
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "smooth": sampling.smoothing[0] is not None,
            "residual": request.residual,
            "parts": sum(scale.part is not None for scale in request.schedule) or 1,
        }


def _require_known(residual: str) -> None:
    if residual not in RESIDUALS:
        raise ValueError(f"Unknown residual {residual!r}; known are {', '.join(RESIDUALS)}.")
