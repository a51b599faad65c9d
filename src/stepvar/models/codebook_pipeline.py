"""Base of the pipelines whose tokens are codes of a codebook: VAR, HART and Switti."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from stepvar.generation.sampling import CodebookChoice, CodebookSampler, CodebookSettings
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.common.vector_quantizer import VectorQuantizer
from stepvar.models.common.vq_vae import VectorQuantizedVAE
from stepvar.models.parts import Transformer
from stepvar.models.pipeline import NextScalePipeline
from stepvar.models.request import PerScale, Request, check_pixels, numbers_per_scale

_GUIDANCE_OFF = "_guidance_off"
"""Entry of a saved configuration: the guidance_scale that is off. Folders without it count from 0."""


class CodebookTransformer(Transformer, Protocol):
    """A transformer of one scale schedule."""

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales that its weights know."""
        ...


@dataclass(frozen=True, kw_only=True)
class CodebookRequest(Request):
    """A checked call.

    Attributes:
        sampling: How codes are drawn.
    """

    sampling: CodebookSettings


AskedCodes = TypeVar("AskedCodes", bound=CodebookRequest)


class CodebookPipeline(NextScalePipeline[AskedCodes], Generic[AskedCodes]):
    """Base of the pipelines of codebook models: one sampler, one picture size, guidance that grows.

    The official code of these models mixes logits as (1 + t) conditional - t unconditional, and lets t grow
    from 0 at the first scale. Here guidance_scale is 1 + t, as for all models: 1 is off.
    """

    edits_pictures = True

    transformer: CodebookTransformer
    vae: VectorQuantizedVAE

    @classmethod
    def saved_settings(cls, index: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """As for other models; in folders of earlier versions guidance_scale is the official t."""
        if "guidance_scale" in settings and _GUIDANCE_OFF not in index:
            return {**settings, "guidance_scale": settings["guidance_scale"] + 1.0}
        return settings

    @classmethod
    def extract_init_dict(
        cls, config_dict: Mapping[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What diffusers reads a configuration with, where it loads a folder by itself."""
        extracted: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
        extracted = super().extract_init_dict(cls.saved_settings(config_dict, dict(config_dict)), **kwargs)
        return extracted

    def register_defaults(self, published: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """As for other models; a saved configuration says which guidance_scale is off."""
        super().register_defaults(published, given)
        self.register_to_config(**{_GUIDANCE_OFF: 1.0})

    def quantizer(self, device: torch.device) -> VectorQuantizer:
        """The tokenizer's quantiser where the loop runs.

        Offloading moves a component when it is called, and the quantiser is used before its tokenizer is.
        """
        return self.vae.quantizer.to(device)

    def known_values(self, left_over: Tensor, scale: Scale) -> CodebookChoice:
        """The codes nearest to what is left over."""
        index, codes = self.quantizer(left_over.device).nearest(left_over, scale)
        return CodebookChoice(index, codes)

    def sampler(self, request: AskedCodes) -> CodebookSampler:
        device, generators = self._execution_device, request.inputs.generators
        with request.timer.stage("scales"):
            codebook = self.quantizer(device).codebook.weight
            return CodebookSampler(request.sampling, request.schedule, codebook, generators, device)

    def schedule(self, height: int | None = None, width: int | None = None) -> ScaleSchedule:
        """The model's one scale schedule.

        Raises:
            ValueError: When another size is asked for.
        """
        schedule = self.transformer.schedule
        own = self.pixels(schedule)
        check_pixels(height, width)
        height, width = own[0] if height is None else height, own[1] if width is None else width
        if (height, width) != own:
            raise ValueError(
                f"This model draws {own[1]}x{own[0]} pixels only, not {width}x{height}: "
                "leave the size out, or load a model of another size."
            )
        return schedule

    def pixels(self, schedule: ScaleSchedule) -> tuple[int, int]:
        side: int = self.transformer.config["pixels_per_token"]
        return schedule.final.height * side, schedule.final.width * side

    def growing_weights(self, scale: PerScale | None) -> tuple[float, ...]:
        """Guidance of every scale: a number is reached at the last scale and grows to it evenly from 1."""
        scales = len(self.transformer.schedule)
        given = self.config["guidance_scale"] if scale is None else scale
        weights = numbers_per_scale(given, scales, "guidance_scale")
        if isinstance(given, Real):
            strength = weights[0] - 1.0
            return tuple(1.0 + strength * index / max(scales - 1, 1) for index in range(scales))
        return weights

    def own_settings(self, request: AskedCodes) -> dict[str, Any]:
        return {"top_p": request.sampling.top_p}


def even_progress(scales: int) -> list[float]:
    """How far along each of so many scales is: 0 at the first, 1 at the last."""
    return [index / max(scales - 1, 1) for index in range(scales)]
