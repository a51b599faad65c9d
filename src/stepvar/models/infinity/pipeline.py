"""Text to image with Infinity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stepvar.generation.cascade import Cascade
from stepvar.generation.progress import Observer
from stepvar.generation.schedule import Scale
from stepvar.models.arguments import with_arguments_of
from stepvar.models.common.prompt_embeds import PromptEmbeds
from stepvar.models.infinity import SPEC
from stepvar.models.infinity.base_pipeline import BitsRequest, InfinityBasePipeline
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.quantizer import known_bits
from stepvar.models.infinity.session import InfinitySession
from stepvar.models.output import CALLBACK_TENSORS, CallOptions, ImageOutput, StepCallback
from stepvar.models.request import PerScale
from stepvar.pruning.presets import Pruning

PUBLISHED = {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 900, "top_p": 0.97}
"""Defaults of a call; FoundationVision/Infinity, scripts/infer.sh and tools/run_infinity.py."""


class InfinityPipeline(InfinityBasePipeline[BitsRequest]):
    """Draws pictures from prompts; its arguments are those of `InfinityBasePipeline`."""

    spec = SPEC
    presets = PRESETS
    published = PUBLISHED
    edits_pictures = True

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
        batch_invariant: bool = False,
        observer: Observer | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> BitsRequest:
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
        inputs = self.inputs(
            prompt,
            negative_prompt,
            (prompt_embeds, prompt_attention_mask),
            (negative_prompt_embeds, negative_prompt_attention_mask),
            seed,
            generator,
            num_images_per_prompt,
        )
        schedule = self.schedule(height, width, aspect_ratio, pixel_budget)
        options = CallOptions(
            output_type,
            observer,
            return_dict,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            batch_invariant,
        )
        fields = self.request_fields(
            inputs,
            schedule,
            options,
            guidance_scale=guidance_scale,
            guidance_layers=guidance_layers,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            pruning=pruning,
            cascade=cascade,
        )
        return BitsRequest(**fields)

    def known_values(self, left_over: Tensor, scale: Scale) -> Tensor:
        """The signs of what is left over, bits [B, N, D]."""
        return known_bits(left_over, scale, self.vae.config.patchify)

    def edit_size(self, width: int, height: int) -> Mapping[str, Any]:
        return {"aspect_ratio": width / height}

    @with_arguments_of(check)
    def __call__(self, *args: Any, **kwargs: Any) -> ImageOutput:
        """Draws pictures."""
        return self.draw(self.check(*args, **kwargs))

    def prefill(self, request: BitsRequest) -> InfinitySession:
        with request.timer.stage("text"):
            condition = self.condition(request, self.features(request))
            self.load_to_device(self.transformer)
            patchify = self.vae.config.patchify
            device = self._execution_device
            return InfinitySession(self.transformer, condition, request.schedule, patchify, device)
