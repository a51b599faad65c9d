"""Embedded video model as it is trained: transformer and text encoder together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.models.common.training import bit_losses, take_tokens
from stepvar.models.infinitystar.quantizer import quantize, resize_area
from stepvar.models.infinitystar.schedules import VideoScale
from stepvar.models.infinitystar.training import teacher_forced_logits, teacher_inputs
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.scenes.moving.grammar import VOCABULARY
from stepvar.training.common.prompted_model import PromptedModel, draw_tokens, loss_weights
from stepvar.training.video.sizes import SIZE, VideoModelSize, build_transformer


class VideoModel(PromptedModel[InfinityStarTransformer]):
    """Embedded video model.

    Args:
        size: Of the videos and the transformer.
    """

    def __init__(self, size: VideoModelSize = SIZE) -> None:
        super().__init__(build_transformer(size), VOCABULARY)
        self.size = size

    def unconditional(self, tokens: int) -> Tensor:
        return self.transformer.unconditional(tokens)

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
        schedule = self.size.schedule(latent_frames=features.shape[2])
        with torch.no_grad():
            steps = list(quantize(features.float(), schedule, flip))
        finest = self.size.sides[:scales][-1]
        steps = [step for step in steps if step.scale.height <= finest]
        text = self.encode_text(prompts, dropped)
        step_weights = [_weights_at(weights, step.scale) for step in steps]
        drawn = [draw_tokens(weight, share) for weight in step_weights]
        logits = teacher_forced_logits(
            self.transformer,
            text,
            teacher_inputs(steps),
            [step.scale for step in steps],
            schedule,
            drawn,
            compiled,
        )
        bits = [take_tokens(step.bits, chosen) for step, chosen in zip(steps, drawn, strict=True)]
        return bit_losses(logits, bits, loss_weights(step_weights, drawn))


def _weights_at(weights: Tensor, scale: VideoScale) -> Tensor:
    """Weights [B, T, H, W] of the last scale's tokens as those of a step's, [B, N]."""
    frames = weights[:, scale.first_frame : scale.first_frame + scale.frames]
    return resize_area(frames[:, None], scale.grid).flatten(1)
