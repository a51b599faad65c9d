"""Embedded picture model as it is trained: transformer and text encoder together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.training import bit_losses, take_tokens
from stepvar.models.infinity.quantizer import quantize_multiscale, resize_area
from stepvar.models.infinity.training import init_weights, teacher_forced_logits
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.scenes import VOCABULARY
from stepvar.training.common.prompted_model import PromptedModel, draw_tokens, loss_weights
from stepvar.training.pictures.sizes import PictureModelSize, build_transformer


class PictureModel(PromptedModel[InfinityTransformer]):
    """The embedded picture model.

    Args:
        size: Of the pictures and the transformer.
    """

    def __init__(self, size: PictureModelSize) -> None:
        transformer = build_transformer(size)
        init_weights(transformer)
        super().__init__(transformer, VOCABULARY)
        self.grids = size.grids

    def unconditional(self, tokens: int) -> Tensor:
        return self.transformer.unconditional_text[:tokens]

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # Scales that a model of smaller pictures lacks begin as its last one.
        levels = state["level_embedding.weight"]
        rows = [min(level, len(levels) - 1) for level in range(len(self.grids))]
        return {**state, "level_embedding.weight": levels[rows]}

    def forward(
        self,
        features: Tensor,
        weights: Tensor,
        prompts: Sequence[str],
        dropped: Sequence[bool],
        scales: int | None,
        flip: Tensor,
        share: float = 1.0,
        compiled: bool = False,
    ) -> Tensor:
        with torch.no_grad():
            code = quantize_multiscale(features.float(), self.grids, flip)
        text = self.encode_text(prompts, dropped)
        scale_weights = [resize_area(weights[:, None], grid).flatten(1) for grid in self.grids[:scales]]
        drawn = [draw_tokens(weight, share) for weight in scale_weights]
        schedule = ScaleSchedule.from_grids(self.grids)
        inputs = code.teacher_inputs[: len(scale_weights) - 1]
        logits = teacher_forced_logits(self.transformer, text, inputs, schedule, drawn, compiled)
        bits = [take_tokens(bit.flatten(1, 2), chosen) for bit, chosen in zip(code.bits, drawn, strict=False)]
        return bit_losses(logits, bits, loss_weights(scale_weights, drawn))
