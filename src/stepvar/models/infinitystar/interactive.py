"""Interactive continuation: one clip after another, each drawn anew from what the clip before looked like.

Source: `ar_infer_infinity_star_interact` of FoundationVision/InfinityStar (MIT), infinity/models/infinity.py.

Instead of the clip before, a step sees two conditions: all its frames, shrunk, and its last frames together
with the first frame of the whole video at full size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.models.infinitystar.quantizer import resize_area
from stepvar.models.infinitystar.session import Condition

SEMANTIC_POSITION, DETAIL_POSITION = 800, 801
"""Steps of the conditions, beyond all steps of the schedule."""

DETAIL_FRAMES = (18, 19)
"""Frames of the clip before that are seen at full size."""


@dataclass(frozen=True)
class Continuation:
    """What the next clip goes on from.

    Attributes:
        former: Latents of the clip before with the frame before it, [1, C, 1 + t, H, W].
        first: Latents of the first frame of the whole video, [1, C, 1, H, W].
    """

    former: Tensor
    first: Tensor

    def conditions(
        self,
        semantic_grid: tuple[int, int],
        text_length: int,
        detail_frames: tuple[int, ...] = DETAIL_FRAMES,
    ) -> tuple[Condition, Condition]:
        """What every step sees.

        Args:
            semantic_grid: Rows and columns of the shrunken frames.
            text_length: Rotary step of the first visual step.
            detail_frames: Frames seen at full size.
        """
        frames = self.former[:, :, 1:].float()
        count = frames.shape[2]
        detail = torch.cat([self.first.float(), frames[:, :, list(detail_frames)]], dim=2)
        return (
            Condition(
                "semantic_condition",
                resize_area(frames, (count, *semantic_grid)),
                text_length + SEMANTIC_POSITION,
                tuple(range(1, count + 1)),
            ),
            Condition(
                "detail_condition",
                detail,
                text_length + DETAIL_POSITION,
                (0, *(frame + 1 for frame in detail_frames)),
            ),
        )

    def joined(self, drawn: Tensor) -> Tensor:
        """The clip before and the one drawn after it: what is decoded, of which the last frames are new."""
        return torch.cat([self.former[:, :, 1:].to(drawn), drawn], dim=2)

    def after(self, drawn: Tensor) -> Continuation:
        """What the clip after the drawn one goes on from."""
        return Continuation(self.joined(drawn)[:, :, -self.former.shape[2] :], self.first)
