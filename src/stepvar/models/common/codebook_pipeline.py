"""What the pipelines share whose tokens are codes of a codebook: VAR, HART and Switti."""

from __future__ import annotations

from typing import Any

import torch

from stepvar.generation.guidance import per_scale
from stepvar.generation.sampling import CodebookSampler
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.vector_quantizer import VectorQuantizer
from stepvar.models.pipeline import NextScalePipeline
from stepvar.models.request import PerScale, Request


class CodebookPipeline(NextScalePipeline):
    """Base of the pipelines of codebook models: one sampler, one picture size, guidance that may be 0.

    Guidance of strength t is (1 + t) conditional - t unconditional, so a weight of 1 + t.
    """

    def quantizer(self, device: torch.device) -> VectorQuantizer:
        """The tokenizer's quantiser where the loop runs.

        Offloading moves a component when it is called, and the quantiser is used before its tokenizer is.
        """
        return self.vae.quantizer.to(device)

    def sampler(self, request: Request, device: torch.device) -> CodebookSampler:
        codebook, generators = self.quantizer(device).codebook.weight, request.inputs.generators
        return CodebookSampler(request.sampling, request.schedule, codebook, generators, device)

    def schedule(self, height: int | None = None, width: int | None = None) -> ScaleSchedule:
        """The model's one scale schedule.

        Raises:
            ValueError: When another size is asked for.
        """
        schedule, pixels = self.transformer.schedule, self.transformer.config.pixels_per_token
        own = (schedule.final.height * pixels, schedule.final.width * pixels)
        height, width = own[0] if height is None else height, own[1] if width is None else width
        if (height, width) != own:
            raise ValueError(
                f"This model draws {own[1]}x{own[0]} pixels only, not {width}x{height}: "
                "leave the size out, or load a model of another size."
            )
        return schedule

    def growing_strengths(self, scale: PerScale | None) -> tuple[float, ...]:
        """Guidance of every scale: a number is reached at the last scale and grows to it evenly from 0."""
        scales = len(self.transformer.schedule)
        given = self.config.guidance_scale if scale is None else scale
        strengths = per_scale(given, scales, "guidance_scale")
        if isinstance(given, (int, float)):
            return tuple(given * index / max(scales - 1, 1) for index in range(scales))
        return strengths

    def own_settings(self, request: Request) -> dict[str, Any]:
        return {
            "guidance_scale": [weight - 1.0 for weight in request.guidance.weights],
            "top_p": request.sampling.top_p,
        }


def even_progress(scales: int) -> list[float]:
    """How far along each of so many scales is: 0 at the first, 1 at the last."""
    return [index / max(scales - 1, 1) for index in range(scales)]
