"""Text to image with HART."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer
from stepvar.generation.report import ScaleCost
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.arguments import with_arguments_of
from stepvar.models.codebook_pipeline import CodebookPipeline, CodebookRequest
from stepvar.models.encoded_prompts import EncodedPrompts
from stepvar.models.hart import SPEC
from stepvar.models.hart.checkpoints import check_pair
from stepvar.models.hart.costs import scale_costs
from stepvar.models.hart.presets import PRESETS
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import draw_orders, scale_schedule
from stepvar.models.hart.text import ContextFeatures, as_context, encode_prompts
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.hart.vae import HARTVAE
from stepvar.models.output import CALLBACK_TENSORS, CallOptions, ImageOutput, StageTimer, StepCallback
from stepvar.models.request import Inputs, PerScale
from stepvar.pruning.presets import Pruning

RESIDUALS = ("all", "kept", "none")
"""Where the diffusion head draws residuals: everywhere, where the transformer ran, or nowhere."""

PUBLISHED = {"guidance_scale": 5.5, "top_k": None, "top_p": 0.0, "smooth": True}
"""Defaults of a call; mit-han-lab/hart, sample.py, where guidance is counted from 0."""


@dataclass(frozen=True, kw_only=True)
class HARTRequest(CodebookRequest):
    """A checked call.

    Attributes:
        residual: One of `RESIDUALS`.
    """

    residual: str


class HARTPipeline(CodebookPipeline[HARTRequest]):
    """Draws pictures from prompts.

    Args:
        transformer: Predicts codes, and draws what they leave over.
        vae: The visual tokenizer the transformer was trained with.
        text_encoder, tokenizer: The Qwen2 language model and its tokenizer; may be left out when prompts
            come as embeddings.
        guidance_scale, top_k, top_p, smooth: Defaults of `__call__`; None is what the transformer was first
            used with, or the published value.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.
    """

    spec = SPEC
    presets = PRESETS
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012

    transformer: HARTTransformer
    vae: HARTVAE

    def __init__(
        self,
        transformer: HARTTransformer,
        vae: HARTVAE,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool | None = None,
    ) -> None:
        super().__init__()
        check_pair(transformer, vae)
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        given = {"guidance_scale": guidance_scale, "top_k": top_k, "top_p": top_p, "smooth": smooth}
        self.register_defaults(PUBLISHED, given)

    def check(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
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
        pruning: Pruning = None,
        prompt_embeds: ContextFeatures | Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: ContextFeatures | Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        batch_invariant: bool = False,
        observer: Observer | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> HARTRequest:
        """Checks the arguments of a call, and computes nothing yet.

        Args:
            prompt: One prompt, or several of any length.
            height, width: Pixels; every model draws one size.
            negative_prompt: What to steer away from: one for all, or one a prompt; by default nothing, which
                the model knows as zeros.
            guidance_scale: Classifier-free guidance, 1 is off; the official number plus 1. One number grows
                along the scales from 1 on, as published; a list has one entry a scale.
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
            generator: Instead of seeds, one an image; a single one serves all images in turn.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            prompt_embeds: Encoded prompts instead of prompts: what `encode_prompts` gives, or one tensor
                [B, T, E] of all context tokens.
            prompt_attention_mask: [B, T], where a prompt of one tensor has a token.
            negative_prompt_embeds, negative_prompt_attention_mask: Likewise, instead of negative prompts.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
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
        if residual not in RESIDUALS:
            raise ValueError(f"Unknown residual {residual!r}; known are {', '.join(RESIDUALS)}.")
        embeds = (
            as_context(prompt_embeds, prompt_attention_mask),
            as_context(negative_prompt_embeds, negative_prompt_attention_mask, "negative_prompt_embeds"),
        )
        inputs = Inputs.of_texts(prompt, negative_prompt, embeds, seed, generator, num_images_per_prompt)
        for given in embeds:
            self._require_shape(given)
        config, schedule = self.config, self.schedule(height, width, parts)
        guidance = make_guidance(
            config["guidance_scale"] if guidance_scale is None else guidance_scale, schedule
        )
        sampling = make_sampling(
            schedule,
            1.0 if temperature is None else temperature,
            config["top_k"] if top_k is None else top_k,
            config["top_p"] if top_p is None else top_p,
            config["smooth"] if smooth is None else smooth,
        )
        return HARTRequest(
            inputs=inputs,
            schedule=schedule,
            guidance=guidance,
            sampling=sampling,
            method=self.check_pruning(pruning, schedule, guidance),
            options=CallOptions(
                output_type,
                observer,
                return_dict,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
                batch_invariant,
            ),
            timer=StageTimer(self._execution_device),
            residual=residual,
        )

    @with_arguments_of(check)
    def __call__(self, *args: Any, **kwargs: Any) -> ImageOutput:
        """Draws pictures."""
        return self.draw(self.check(*args, **kwargs))

    def scale_costs(
        self, request: HARTRequest, plan: GenerationPlan, rows: Sequence[int], images: int, text_tokens: int
    ) -> tuple[ScaleCost, ...]:
        # The diffusion head takes an official guidance of 1 for none, as it does 0.
        copies = 1 if request.guidance.weights[-1] in (1.0, 2.0) else 2
        return scale_costs(self.transformer, plan, rows, images, request.residual, copies)

    def schedule(self, height: int | None = None, width: int | None = None, parts: int = 1) -> ScaleSchedule:
        """The model's one scale schedule, with the last map in so many parts.

        Raises:
            ValueError: When another size, or too many parts are asked for.
        """
        whole = super().schedule(height, width)
        return scale_schedule([(scale.height, scale.width) for scale in whole], parts)

    def check_prompts(
        self, prompts: Sequence[str], negatives: Sequence[str] = (), seconds: float | None = None
    ) -> None:
        """Refuses prompts when there is nothing that could encode them; long ones are cut, with a warning."""
        self.text_parts()

    def encode(self, prompts: Sequence[str]) -> ContextFeatures:
        tokenizer, text_encoder = self.text_parts()
        length = self.transformer.config.context_tokens
        return encode_prompts(tokenizer, text_encoder, prompts, length, self._execution_device)

    def pack_encoded(
        self, positive: ContextFeatures, negative: ContextFeatures | None, repeats: int
    ) -> EncodedPrompts:
        other = None if negative is None else (negative.features, negative.mask)
        return EncodedPrompts.of((positive.features, positive.mask), other, repeats)

    def prefill(self, request: HARTRequest) -> HARTSession:
        device, inputs = self._execution_device, request.inputs
        with request.timer.stage("text"):
            condition = self._condition(request)
            self.load_to_device(self.transformer)
            return HARTSession(
                self.transformer,
                self.quantizer(device),
                condition,
                inputs.images,
                request.schedule,
                self._residual(request, device),
                draw_orders(inputs.generators, request.schedule.final, device),
                device,
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
        positive = positive.repeat(request.inputs.repeats)
        if not request.guidance.active:
            return positive
        if negative is None:
            images, tokens, channels = positive.features.shape
            return positive.joined(ContextFeatures.empty(images, tokens, channels, positive.features.device))
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
