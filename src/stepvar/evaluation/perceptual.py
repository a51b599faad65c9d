"""LPIPS, where its weights are at hand: nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
PerceptualDistance = Callable[[Pixels, Pixels], float]

BACKBONES = {"alex": "alexnet-owt-", "vgg": "vgg16-", "squeeze": "squeezenet1_1-"}
"""Networks of LPIPS, and how the files of torchvision's weights for them start."""


def missing_for_lpips(backbone: str = "alex") -> str | None:
    """What LPIPS lacks on this machine, in a sentence; None when all is there.

    Raises:
        ValueError: When there is no such backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"Unknown LPIPS backbone {backbone!r}; known are {', '.join(BACKBONES)}.")
    absent = [name for name in ("torchmetrics", "torchvision") if importlib.util.find_spec(name) is None]
    if absent:
        return f"LPIPS needs {' and '.join(absent)}: pip install {' '.join(absent)}."
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not any(folder.glob(f"{BACKBONES[backbone]}*.pth")):
        return f"LPIPS needs torchvision's weights {BACKBONES[backbone]}*.pth in '{folder}'."
    return None


def load_lpips(backbone: str = "alex", device: str = "cpu") -> PerceptualDistance:
    """LPIPS of two pictures, 0 for identical ones.

    Raises:
        ValueError: When something it needs is missing; see `missing_for_lpips`.

    Source: Zhang et al. 2018, through torchmetrics.
    """
    missing = missing_for_lpips(backbone)
    if missing is not None:
        raise ValueError(missing)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type=backbone).eval().to(device)

    @torch.no_grad()
    def distance(first: Pixels, second: Pixels) -> float:
        planes = [
            torch.from_numpy(picture).permute(2, 0, 1)[None].float().to(device) / 127.5 - 1.0
            for picture in (first, second)
        ]
        return float(network(*planes))

    return distance
