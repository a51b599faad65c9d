"""Text to image with Switti."""

# No postponed annotations here: diffusers reads the component types off the constructor.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.loop import generate, plan_generation
from stepvar.generation.progress import Observer, Stopwatch
from stepvar.generation.report import Report, Summary
from stepvar.generation.sampling import CodebookSampler, CodebookSettings
from stepvar.generation.schedule import ScaleSchedule
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
from stepvar.models.switti.cost import scale_costs
from stepvar.models.switti.session import SwittiSession, TextFeatures
from stepvar.models.switti.text import encode_prompts
from stepvar.models.switti.tokenizer import SwittiTokenizer
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.vector_checkpoints import check_pair
from stepvar.pruning.base import PruningMethod

PerScale = float | Sequence[float]


@dataclass(frozen=True)
class _Request:
    """Checked inputs of one call: nothing has been computed yet."""

    prompts: list[str]
    negatives: list[str]
    guidance: Guidance
    sampling: CodebookSettings
    method: PruningMethod | None
    generators: list[torch.Generator]
    seeds: list[int | None]


class SwittiPipeline(NextScalePipeline):
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

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]  # noqa: RUF012

    def __init__(
        self,
        transformer: SwittiTransformer,
        vae: SwittiTokenizer,
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
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"Unknown output_type {output_type!r}; known are {', '.join(OUTPUT_TYPES)}.")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; it must be 1 or more.")
        if prompt_features is None:
            prompts = as_prompts(prompt or "")
        else:
            prompts = [""] * len(prompt_features.tokens)
        schedule = self.schedule(height, width)
        generators, seeds = make_generators(len(prompts) * num_images_per_prompt, seed, generator)
        start, stop = self._guided_scales(guidance_start, guidance_stop)
        guidance = self._guidance(guidance_scale, start, stop)
        request = _Request(
            prompts,
            self._negatives(negative_prompt, len(prompts)),
            guidance,
            self._sampling(top_k, top_p, smooth, smooth_start, late_temperature, stop),
            self.plan_method(pruning, schedule, guidance),
            generators,
            seeds,
        )
        features = (prompt_features, negative_features)
        latent, report = self._generate(request, num_images_per_prompt, features, observer)
        return self.decode_output(latent, report, output_type)

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
        depth, copies = len(self.transformer.blocks), 2 if guidance.active else 1
        plan, dense = plan_generation(method, schedule, depth), plan_generation(None, schedule, depth)
        rows, dense_rows = (rows_per_scale(guidance, images, copies, one) for one in (plan, dense))
        costs = scale_costs(self.transformer, plan, rows, text_tokens)
        return Summary(plan, costs, scale_costs(self.transformer, dense, dense_rows, text_tokens))

    def schedule(self, height: int | None = None, width: int | None = None) -> ScaleSchedule:
        """The model's one scale schedule.

        Raises:
            ValueError: When another size is asked for.
        """
        return self.only_schedule(height, width)

    def _negatives(self, negative: str | Sequence[str] | None, prompts: int) -> list[str]:
        negatives = [""] if negative is None or negative == "" else as_prompts(negative, "negative prompt")
        if len(negatives) == 1:
            negatives *= prompts
        if len(negatives) != prompts:
            raise ValueError(
                f"{prompts} prompts need one negative prompt, or {prompts}; got {len(negatives)}."
            )
        return negatives

    def _guided_scales(self, start: int | None, stop: int | None) -> tuple[int, int]:
        start = self.config.guidance_start if start is None else start
        stop = self.config.guidance_stop if stop is None else stop
        if start < 0 or stop < 0:
            raise ValueError(f"guidance_start is {start} and guidance_stop is {stop}; scales count from 0.")
        return start, stop

    def _guidance(self, scale: PerScale | None, start: int, stop: int) -> Guidance:
        scales = len(self.transformer.schedule)
        given = self.config.guidance_scale if scale is None else scale
        strengths = per_scale(given, scales, "guidance_scale")
        if isinstance(given, (int, float)):
            strengths = tuple(given * index / max(scales - 1, 1) for index in range(scales))
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
        if top_k < 0 or not 0.0 <= top_p <= 1.0:
            raise ValueError(f"top_k is {top_k} and top_p is {top_p:g}; use 0 or more, and 0 to 1.")
        late = config.late_temperature if late_temperature is None else late_temperature
        if late is not None and not late > 0:
            raise ValueError(f"late_temperature is {late:g}; it must be positive (top_k=1 takes the best).")
        first = scales
        if config.smooth if smooth is None else smooth:
            first = config.smooth_start if smooth_start is None else smooth_start
        smoothing = tuple(
            index / max(scales - 1, 1) if first <= index < stop else None for index in range(scales)
        )
        temperature = tuple(late if late and index >= stop else 1.0 for index in range(scales))
        return CodebookSettings(temperature, (top_k,) * scales, top_p, smoothing, filter_smoothed=False)

    def _generate(
        self,
        request: _Request,
        repeats: int,
        features: tuple[TextFeatures | None, TextFeatures | None],
        observer: Observer | None,
    ) -> tuple[Tensor, Report]:
        device = self._execution_device
        reset_peak_memory(device)
        watch = Stopwatch(device)
        watch.mark()
        positive, negative = self._features(request, features, device)
        watch.mark()
        bring_in(self.transformer)
        quantizer = self.vae.quantizer.to(device)
        negative = None if negative is None else negative.repeated(repeats)
        session = SwittiSession(self.transformer, quantizer, positive.repeated(repeats), negative)
        sampler = CodebookSampler(
            request.sampling, session.schedule, quantizer.codebook.weight, request.generators, device
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
        report = Report(
            result.scales,
            {"text": watch.seconds(0), "scales": watch.seconds(1)},
            result.cache_bytes,
            0,
            request.seeds,
            self._settings(request),
            {scale: choice.index for scale, choice in result.choices.items()},
        )
        return result.latent, report

    def _features(
        self,
        request: _Request,
        given: tuple[TextFeatures | None, TextFeatures | None],
        device: torch.device,
    ) -> tuple[TextFeatures, TextFeatures | None]:
        positive = given[0] if given[0] is not None else self._encode(request.prompts, device)
        if not request.guidance.active:
            return positive, None
        negative = given[1] if given[1] is not None else self._encode(request.negatives, device)
        if len(negative.tokens) != len(positive.tokens):
            count = len(positive.tokens)
            raise ValueError(f"{count} prompts need as many negatives; got {len(negative.tokens)}.")
        return positive, negative

    def _encode(self, prompts: Sequence[str], device: torch.device) -> TextFeatures:
        tokenizers = [self.tokenizer, self.tokenizer_2]
        encoders = [self.text_encoder, self.text_encoder_2]
        if None in tokenizers or None in encoders:
            raise ValueError("This pipeline has no text encoders: pass features, or load them.")
        return encode_prompts(tokenizers, encoders, prompts, self.transformer.config.text_length, device)

    def _settings(self, request: _Request) -> dict[str, Any]:
        side = self.transformer.schedule.final.height * self.transformer.config.pixels_per_token
        sampling = request.sampling
        return describe(
            {
                "model": self.origin,
                "prompts": request.prompts,
                "negative_prompts": request.negatives,
                "width": side,
                "height": side,
                "guidance_scale": [weight - 1.0 for weight in request.guidance.weights],
                "temperature": sampling.temperature,
                "top_k": sampling.top_k[0],
                "top_p": sampling.top_p,
                "smooth": [progress is not None for progress in sampling.smoothing],
                "pruning": request.method,
                "dtype": str(self.transformer.compute_dtype).removeprefix("torch."),
            }
        )
