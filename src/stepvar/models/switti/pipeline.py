"""Text to image with Switti."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from stepvar.generation.guidance import Guidance
from stepvar.generation.progress import Observer
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.report import Summary
from stepvar.generation.sampling import CodebookSettings
from stepvar.models.common.codebook_pipeline import CodebookPipeline, even_progress
from stepvar.models.common.vq_vae_checkpoints import check_pair
from stepvar.models.pipeline import ImageOutput
from stepvar.models.request import Inputs, PerScale, Request, check_filters
from stepvar.models.switti.costs import scale_costs
from stepvar.models.switti.presets import PRESETS
from stepvar.models.switti.session import SwittiSession, TextFeatures
from stepvar.models.switti.text import encode_prompts
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.switti.vae import SwittiVAE


class SwittiPipeline(CodebookPipeline):
    """Draws pictures from prompts.

    Args:
        transformer: Predicts codes.
        vae: The visual tokenizer the transformer was trained with.
        text_encoder, tokenizer: CLIP ViT-L's text half and its tokenizer; may be left out when prompts come
            as features.
        text_encoder_2, tokenizer_2: The same of CLIP bigG.
        guidance_scale, guidance_start, guidance_stop, top_k, top_p, smooth, smooth_start, late_temperature:
            Defaults of `__call__`.

    Raises:
        ValueError: When transformer and tokenizer do not belong together.

    Source of the defaults: yandex-research/switti, models/pipeline.py. Its README draws 1024 px pictures with
    smooth, smooth_start 2, guidance_stop 11 and late_temperature 0.1.
    """

    presets = PRESETS
    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]  # noqa: RUF012

    def __init__(
        self,
        transformer: SwittiTransformer,
        vae: SwittiVAE,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder_2: CLIPTextModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        guidance_scale: float = 6.0,
        guidance_start: int = 0,
        guidance_stop: int = 10,
        top_k: int = 400,
        top_p: float = 0.95,
        smooth: bool = False,
        smooth_start: int = 0,
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
        self.register_to_config(
            guidance_scale=guidance_scale,
            guidance_start=guidance_start,
            guidance_stop=guidance_stop,
            top_k=top_k,
            top_p=top_p,
            smooth=smooth,
            smooth_start=smooth_start,
            late_temperature=late_temperature,
        )

    @property
    def remembers(self) -> bool:
        return self.transformer.config.causal

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
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
        pruning: PruningMethod | str | None = None,
        prompt_features: TextFeatures | None = None,
        negative_features: TextFeatures | None = None,
        output_type: str = "pil",
        observer: Observer | None = None,
    ) -> ImageOutput:
        """Draws pictures.

        Args:
            prompt: One prompt, or several of any length.
            negative_prompt: What to steer away from: one for all, or one a prompt; by default the empty text.
            height, width: Pixels; every model draws one size.
            guidance_scale: Classifier-free guidance t, with logits (1 + t) conditional - t unconditional. One
                number would be reached at the last scale and grows to it evenly from 0 at the first, as
                published; a list has the t of every scale. 0 is off.
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
            generator: One an image, instead of seeds.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            prompt_features: Features of the prompts, instead of prompts.
            negative_features: Features of the negative prompts, one a prompt, instead of negative prompts.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            observer: Hears of every scale.

        Returns:
            The pictures, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        features = (prompt_features, negative_features)
        inputs = Inputs.of_texts(prompt, negative_prompt, features, seed, generator, num_images_per_prompt)
        if inputs.negatives is None:
            inputs = replace(inputs, negatives=[""] * len(inputs.prompts))
        schedule = self.schedule(height, width)
        start, stop = self._guided_scales(guidance_start, guidance_stop)
        guidance = self._guidance(guidance_scale, start, stop)
        sampling = self._sampling(top_k, top_p, smooth, smooth_start, late_temperature, stop)
        method = self.plan_method(pruning, schedule, guidance)
        return self.draw(Request(inputs, schedule, guidance, sampling, method), output_type, observer)

    def summary(
        self,
        pruning: PruningMethod | str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: PerScale | None = None,
        guidance_start: int | None = None,
        guidance_stop: int | None = None,
        images: int = 1,
        text_tokens: int = 16,
    ) -> Summary:
        """What a call with these arguments will run: tokens kept, skips, FLOPs and KV bytes a scale.

        Args:
            images: Pictures in the batch.
            text_tokens: Length of a prompt in tokens, for the cost of cross-attention.

        Raises:
            ValueError: As `__call__` would.
        """
        schedule = self.schedule(height, width)
        guidance = self._guidance(guidance_scale, *self._guided_scales(guidance_start, guidance_stop))
        method = self.plan_method(pruning, schedule, guidance)
        costs = partial(scale_costs, self.transformer, text_tokens=text_tokens)
        return self.summarise(method, schedule, guidance, images, costs)

    def _guided_scales(self, start: int | None, stop: int | None) -> tuple[int, int]:
        start = self.config.guidance_start if start is None else start
        stop = self.config.guidance_stop if stop is None else stop
        if start < 0 or stop < 0:
            raise ValueError(f"guidance_start is {start} and guidance_stop is {stop}; scales count from 0.")
        return start, stop

    def _guidance(self, scale: PerScale | None, start: int, stop: int) -> Guidance:
        strengths = self.growing_strengths(scale)
        weights = [
            1.0 + strength if start <= index < stop else 1.0 for index, strength in enumerate(strengths)
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
        top_k = config.top_k if top_k is None else top_k
        top_p = config.top_p if top_p is None else top_p
        check_filters(top_k, top_p)
        late = config.late_temperature if late_temperature is None else late_temperature
        if late is not None and not late > 0:
            raise ValueError(f"late_temperature is {late:g}; it must be positive (top_k=1 takes the best).")
        first = scales
        if config.smooth if smooth is None else smooth:
            first = config.smooth_start if smooth_start is None else smooth_start
        smoothing = tuple(
            share if first <= index < stop else None for index, share in enumerate(even_progress(scales))
        )
        temperature = tuple(late if late and index >= stop else 1.0 for index in range(scales))
        return CodebookSettings(temperature, (top_k,) * scales, top_p, smoothing, filter_smoothed=False)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        self.require_text_encoder()
        tokenizers, encoders = (self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2)
        length, device = self.transformer.config.text_length, self._execution_device
        return encode_prompts(tokenizers, encoders, prompts, length, device)

    def start(self, request: Request, device: torch.device) -> SwittiSession:
        texts = [
            None if text is None else text.repeated(request.inputs.repeats) for text in self.features(request)
        ]
        self.load_to_device(self.transformer)
        return SwittiSession(self.transformer, self.quantizer(device), *texts)

    def own_settings(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return {
            **super().own_settings(request),
            "temperature": sampling.temperature,
            "top_k": sampling.top_k[0],
            "smooth": [progress is not None for progress in sampling.smoothing],
        }
