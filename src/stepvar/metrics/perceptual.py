"""Perceptual distance of two pictures: LPIPS with weights from a file, and a stand-in for scenes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stepvar.metrics.features import require_tensors_only

if TYPE_CHECKING:
    from stepvar.scenes.network.network import SceneNetwork

Pixels = NDArray[np.uint8]
PerceptualDistance = Callable[[Pixels, Pixels], NDArray[np.float64]]
"""Of pictures uint8 [N, H, W, 3] in pairs: [N] distances, 0 for identical ones."""

BACKBONES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""Networks of LPIPS, and the files of torchvision's weights for them."""


def missing_for_lpips(network: str | Path = "alex") -> str | None:
    """What LPIPS lacks on this machine, in a sentence; None when all is there.

    Args:
        network: A name of `BACKBONES`, whose weights torchvision has downloaded before, or the file itself.

    Raises:
        ValueError: When there is no such network.
    """
    file = _weights_file(network)
    absent = [name for name in ("torchmetrics", "torchvision") if importlib.util.find_spec(name) is None]
    if absent:
        return f"LPIPS needs {' and '.join(absent)}: pip install {' '.join(absent)}."
    if not file.is_file():
        return f"LPIPS needs torchvision's weights, and there is no file '{file}': download it, and name it."
    return None


def load_lpips(network: str | Path = "alex", device: str = "cpu") -> PerceptualDistance:
    """LPIPS of pairs of pictures.

    Args:
        network: See `missing_for_lpips`. Nothing is downloaded.
        device: Where it runs.

    Raises:
        ValueError: When something that it needs is missing, or the file holds more than tensors.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018,
    through torchmetrics.
    """
    missing = missing_for_lpips(network)
    if missing is not None:
        raise ValueError(missing)
    file = _weights_file(network)
    require_tensors_only(file, "weights for LPIPS")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    # torchmetrics takes literal names.
    name: Any = next(name for name, known in BACKBONES.items() if known == file.name)
    with _found_by_torchvision(file):
        metric = LearnedPerceptualImagePatchSimilarity(net_type=name).eval().to(device)

    @torch.no_grad()
    def distance(first: Pixels, second: Pixels) -> NDArray[np.float64]:
        pairs = zip(_signed(first, device), _signed(second, device), strict=True)
        # torchmetrics gives one number a call.
        return np.array([float(metric(left[None], right[None])) for left, right in pairs])

    return distance


def scene_distance(network: SceneNetwork) -> PerceptualDistance:
    """LPIPS' formula on the backbone of the scene network, for the embedded model's scenes.

    At every place of three maps, of strides 4, 8 and 16, the squared distance of the unit features of both
    pictures, 0 to 4; the mean over places, then over maps. No layer is weighted by human judgements, as
    LPIPS's are: compare these numbers with each other only.
    """
    from stepvar.scenes.network.image_backbone import normalise_pixels

    def maps(pictures: Pixels) -> list[torch.Tensor]:
        normalised = normalise_pixels(torch.from_numpy(np.ascontiguousarray(pictures)).to(network.device))
        return [
            torch.nn.functional.normalize(hidden, dim=1) for hidden in network.backbone.layers(normalised)
        ]

    @torch.inference_mode()
    def distance(first: Pixels, second: Pixels) -> NDArray[np.float64]:
        pairs = zip(maps(first), maps(second), strict=True)
        parts = [(left - right).square().sum(dim=1).mean(dim=(1, 2)) for left, right in pairs]
        return torch.stack(parts).mean(dim=0).double().cpu().numpy()

    return distance


def _weights_file(network: str | Path) -> Path:
    if str(network) in BACKBONES:
        return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[str(network)]
    if Path(network).name not in BACKBONES.values():
        raise ValueError(
            f"Unknown LPIPS network '{network}'; known are {', '.join(BACKBONES)}, or a file of "
            f"torchvision's weights under its own name ({', '.join(BACKBONES.values())})."
        )
    return Path(network)


@contextmanager
def _found_by_torchvision(file: Path) -> Iterator[None]:
    """Lets torchvision find a file where it looks for its downloads."""
    before = torch.hub.get_dir()
    with TemporaryDirectory() as place:
        folder = Path(place) / "checkpoints"
        folder.mkdir()
        (folder / file.name).symlink_to(file.resolve())
        torch.hub.set_dir(place)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _signed(pictures: Pixels, device: str) -> torch.Tensor:
    """[N, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1.0
