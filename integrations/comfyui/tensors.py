"""ComfyUI's tensors: pictures [B, H, W, 3] and masks [B, H, W], float32 in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def images_of(result: Any) -> Tensor:
    """Pictures of a result, or the frames of its first video."""
    frames = getattr(result, "frames", None)
    return to_tensor(result.images if frames is None else frames[0])


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """PIL pictures of one size, [B, H, W, 3]."""
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0 for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def kept_mask(report: Any, images: Tensor, scale: int | None = None) -> Tensor:
    """Where a scale computed its tokens, as large as the pictures: 1 kept, 0 pruned or left out.

    Args:
        report: Of the generation.
        images: Its pictures, [B, H, W, 3].
        scale: Its place, from the end where negative; None takes the last one that was pruned, else the last.

    Raises:
        ValueError: When there is no such scale.
    """
    scales = report.scales
    if scale is None:
        narrowed = [place for place, entry in enumerate(scales) if entry.kept_index is not None]
        scale = narrowed[-1] if narrowed else -1
    if not -len(scales) <= scale < len(scales):
        raise ValueError(
            f"There is no scale {scale}: the run has {len(scales)}, from 0 to {len(scales) - 1}."
        )
    entry = scales[scale]
    count, height, width = images.shape[:3]
    grid = entry.plan.scale
    if entry.plan.skipped:
        return torch.zeros(count, height, width)
    if entry.kept_index is None:
        return torch.ones(count, height, width)
    index = entry.kept_index.cpu()
    tokens = torch.zeros(index.shape[0], grid.frames * grid.height * grid.width)
    tokens.scatter_(1, index.long(), 1.0)
    maps = tokens.reshape(-1, 1, grid.height, grid.width)
    masks = torch.nn.functional.interpolate(maps, (height, width), mode="nearest")[:, 0]
    # A video has fewer maps than frames: each stands for those around it.
    places = torch.linspace(0, len(masks) - 1, count).round().long()
    return masks if len(masks) == count else masks[places]
