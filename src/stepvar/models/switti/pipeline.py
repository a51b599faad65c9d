"""Text to image with Switti."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from stepvar.generation.guidance import Guidance
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer
from stepvar.generation.report import ScaleCost
from stepvar.generation.sampling import CodebookSettings
from stepvar.models.arguments import with_arguments_of
from stepvar.models.codebook_pipeline import CodebookPipeline, CodebookRequest, even_progress
from stepvar.models.common.prompt_embeds import PromptEmbeds, split_embeds
from stepvar.models.common.vq_vae_checkpoints import check_pair
from stepvar.models.encoded_prompts import EncodedPrompts, PooledPrompts, padded_prompts
from stepvar.models.output import CALLBACK_TENSORS, CallOptions, ImageOutput, StageTimer, StepCallback
from stepvar.models.request import Inputs, PerScale, check_filters, check_temperatures
from stepvar.models.switti import SPEC
from stepvar.models.switti.costs import scale_costs
from stepvar.models.switti.presets import PRESETS
from stepvar.models.switti.session import SwittiSession, TextFeatures
from stepvar.models.switti.text import encode_prompts
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.switti.vae import SwittiVAE
from stepvar.pruning.presets import Pruning

PUBLISHED = {
    "guidance_scale": 7.0,
    "guidance_start": 0,
    "guidance_stop": 10,
    "top_k": 400,
    "top_p": 0.95,
    "smooth": False,
    "smooth_start": 0,
    "late_temperature": None,
}
"""Defaults of a call; yandex-research/switti, models/pipeline.py, where guidance is counted from 0.

Its README draws 1024 px pictures with smooth, smooth_start 2, guidance_stop 11 and late_temperature 0.1.
"""


class SwittiPipeline(CodebookPipeline[CodebookRequest]):
    """Draws pictures from prompts.

    Args:
        transformer: Predicts codes.
        vae: The visual tokenizer the transformer was trained with.
        text_encoder, tokenizer: CLIP ViT-L's text half and its tokenizer; may be left out when prompts come
            as features.
        text_encoder_2, tokenizer_2: The same of CLIP bigG.
        guidance_scale, guidance_start, guidance_stop, top_k, top_p, smooth, smooth_start, late_temperature:
            Defaults of `__call__`; None is what the transformer was first used with, or the published value.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.
    """

    spec = SPEC
    presets = PRESETS
    _optional_components = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]  # noqa: RUF012

    transformer: SwittiTransformer
    vae: SwittiVAE
    text_encoder_2: CLIPTextModel | None
    tokenizer_2: PreTrainedTokenizerBase | None

    def __init__(
        self,
        transformer: SwittiTransformer,
        vae: SwittiVAE,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder_2: CLIPTextModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        guidance_scale: float | None = None,
        guidance_start: int | None = None,
        guidance_stop: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool | None = None,
        smooth_start: int | None = None,
        late_temperature: float | None = None,
    ) -> None:
        super().__init__()
        check_pair(transformer, vae)
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        given = {
            "guidance_scale": guidance_scale,
            "guidance_start": guidance_start,
            "guidance_stop": guidance_stop,
            "top_k": top_k,
            "top_p": top_p,
            "smooth": smooth,
            "smooth_start": smooth_start,
            "late_temperature": late_temperature,
        }
        self.register_defaults(PUBLISHED, given)

    @property
    def remembers(self) -> bool:
        return self.transformer.config.causal

    @property
    def text_length(self) -> int:
        return self.transformer.config.text_length

    def check(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: PerScale | None = None,
        guidance_start: int | None = None,
        guidance_stop: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool | None = None,
        smooth_start: int | None = None,
        late_temperature: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        pruning: Pruning = None,
        prompt_embeds: TextFeatures | PromptEmbeds | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: TextFeatures | PromptEmbeds | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        batch_invariant: bool = False,
        observer: Observer | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> CodebookRequest:
        """Checks the arguments of a call, and computes nothing yet.

        Args:
            prompt: One prompt, or several of any length.
            height, width: Pixels; every model draws one size.
            negative_prompt: What to steer away from: one for all, or one a prompt; by default the empty text.
            guidance_scale: Classifier-free guidance, 1 is off; the official t plus 1. One number would be
                reached at the last scale and grows to it evenly from 1 at the first, as published; a list has
                one entry a scale.
            guidance_start, guidance_stop: Guidance is off at scales before the first and from the second on,
                counted from 0. Scales without guidance take half the time.
            top_k: Draws from the k likeliest codes; 1 takes the likeliest, 0 is off.
            top_p: Drops the rarest codes that have 1 - top_p together; 0 is off.
            smooth: Mix codes by a Gumbel softmax that sharpens from scale to scale, instead of picking one;
                top_k and top_p do not count there. Scales from guidance_stop on pick.
            smooth_start: First scale that is mixed.
            late_temperature: Divides the logits of the scales from guidance_stop on; None leaves them.
            num_images_per_prompt: Pictures of each prompt.
            seed: One an image, or one number s for s, s + 1, ...
            generator: Instead of seeds, one an image; a single one serves all images in turn.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            prompt_embeds: Encoded prompts instead of prompts: what `encode_prompts` gives; or, of both
                encoders together, one tensor [B, T, E] or one [T_i, E] a prompt, beside pooled_prompt_embeds.
            pooled_prompt_embeds: [B, P], of the second encoder.
            prompt_attention_mask: [B, T], where a prompt of one tensor has a token.
            negative_prompt_embeds, negative_pooled_prompt_embeds, negative_prompt_attention_mask: Likewise,
                instead of negative prompts.
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
        embeds = (
            self._features_of(prompt_embeds, pooled_prompt_embeds, prompt_attention_mask, "prompt_embeds"),
            self._features_of(
                negative_prompt_embeds,
                negative_pooled_prompt_embeds,
                negative_prompt_attention_mask,
                "negative_prompt_embeds",
            ),
        )
        inputs = Inputs.of_texts(prompt, negative_prompt, embeds, seed, generator, num_images_per_prompt)
        if inputs.negatives is None:
            inputs = replace(inputs, negatives=[""] * len(inputs.prompts))
        schedule = self.schedule(height, width)
        start, stop = self._guided_scales(guidance_start, guidance_stop)
        guidance = self._guidance(guidance_scale, start, stop)
        return CodebookRequest(
            inputs=inputs,
            schedule=schedule,
            guidance=guidance,
            sampling=self._sampling(top_k, top_p, smooth, smooth_start, late_temperature, stop),
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
        )

    @with_arguments_of(check)
    def __call__(self, *args: Any, **kwargs: Any) -> ImageOutput:
        """Draws pictures."""
        return self.draw(self.check(*args, **kwargs))

    def _features_of(
        self,
        embeds: TextFeatures | PromptEmbeds | None,
        pooled: Tensor | None,
        mask: Tensor | None,
        name: str,
    ) -> TextFeatures | None:
        """Encoded prompts as a caller gives them, or None.

        Raises:
            ValueError: When a shape is not what the model reads, or a part is missing.
        """
        given = embeds.tokens if isinstance(embeds, TextFeatures) else embeds
        pooled = embeds.pooled if isinstance(embeds, TextFeatures) else pooled
        config = self.transformer.config
        tokens = split_embeds(given, mask, config.text_channels, self.text_length, name)
        wanted = None if tokens is None else [len(tokens), config.pooled_channels]
        found = None if pooled is None else list(pooled.shape)
        if found != wanted:
            raise ValueError(f"The pooled {name} are {found}; beside {name} they must be {wanted}.")
        return None if tokens is None or pooled is None else TextFeatures(tuple(tokens), pooled.float())

    def _guided_scales(self, start: int | None, stop: int | None) -> tuple[int, int]:
        start = self.config["guidance_start"] if start is None else start
        stop = self.config["guidance_stop"] if stop is None else stop
        if start < 0 or stop < 0:
            raise ValueError(f"guidance_start is {start} and guidance_stop is {stop}; scales count from 0.")
        return start, stop

    def _guidance(self, scale: PerScale | None, start: int, stop: int) -> Guidance:
        weights = [
            weight if start <= index < stop else 1.0
            for index, weight in enumerate(self.growing_weights(scale))
        ]
        return Guidance(tuple(weights), remembers=self.transformer.config.causal)

    def _sampling(
        self,
        top_k: int | None,
        top_p: float | None,
        smooth: bool | None,
        smooth_start: int | None,
        late_temperature: float | None,
        stop: int,
    ) -> CodebookSettings:
        config, scales = self.config, len(self.transformer.schedule)
        top_k = config["top_k"] if top_k is None else top_k
        top_p = config["top_p"] if top_p is None else top_p
        check_filters(top_k, top_p)
        late = config["late_temperature"] if late_temperature is None else late_temperature
        if late is not None:
            check_temperatures([late], "late_temperature")
        first = scales
        if config["smooth"] if smooth is None else smooth:
            first = config["smooth_start"] if smooth_start is None else smooth_start
        smoothing = tuple(
            share if first <= index < stop else None for index, share in enumerate(even_progress(scales))
        )
        temperature = tuple(late if late and index >= stop else 1.0 for index in range(scales))
        return CodebookSettings(temperature, (top_k,) * scales, top_p, smoothing, filter_smoothed=False)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        (tokenizer, encoder), (tokenizer_2, encoder_2) = self.text_parts(), self.text_parts("_2")
        tokenizers, encoders = (tokenizer, tokenizer_2), (encoder, encoder_2)
        return encode_prompts(tokenizers, encoders, prompts, self.text_length, self._execution_device)

    def pack_encoded(
        self, positive: TextFeatures, negative: TextFeatures | None, repeats: int
    ) -> PooledPrompts:
        other = None if negative is None else padded_prompts(negative.tokens)
        texts = EncodedPrompts.of(padded_prompts(positive.tokens), other, repeats)
        pooled = positive.pooled.repeat_interleave(repeats, 0)
        return PooledPrompts(
            *texts, pooled, None if negative is None else negative.pooled.repeat_interleave(repeats, 0)
        )

    def prefill(self, request: CodebookRequest) -> SwittiSession:
        repeats = request.inputs.repeats
        with request.timer.stage("text"):
            positive, negative = self.features(request)
            negative = None if negative is None else negative.repeated(repeats)
            self.load_to_device(self.transformer)
            return SwittiSession(
                self.transformer,
                self.quantizer(self._execution_device),
                positive.repeated(repeats),
                negative,
                self._execution_device,
            )

    def scale_costs(
        self,
        request: CodebookRequest,
        plan: GenerationPlan,
        rows: Sequence[int],
        images: int,
        text_tokens: int,
    ) -> tuple[ScaleCost, ...]:
        return scale_costs(self.transformer, plan, rows, text_tokens)

    def own_settings(self, request: CodebookRequest) -> dict[str, Any]:
        sampling = request.sampling
        return {
            **super().own_settings(request),
            "temperature": sampling.temperature,
            "top_k": sampling.top_k[0],
            "smooth": [progress is not None for progress in sampling.smoothing],
        }
