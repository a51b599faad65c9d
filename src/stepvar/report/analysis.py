"""Experiments about why pruning works, behind figures 1b, 1c, 3 and 6."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepvar.generation.schedule import Scale
from stepvar.metrics.fidelity import bounded_psnr, spectrum, ssim
from stepvar.report.experiment import Experiment, Numbers
from stepvar.report.probes import Perturbation, ResidualProbe
from stepvar.scenes.segmentation import segment

SMALLEST_MAP = 16
"""Tokens that a correlation needs."""


def perturb(experiment: Experiment, index: int, pictures: int) -> Numbers:
    """PSNR and SSIM to the clean pictures when one scale is disturbed (figure 1b)."""
    samples = experiment.samples[:pictures]
    clean = experiment.generate(samples, None).pictures
    disturbed = experiment.generate(
        samples, Perturbation(index - len(experiment.configurations.schedule))
    ).pictures
    pairs = list(zip(disturbed, clean, strict=True))
    return {
        "scale": str(experiment.configurations.schedule[index]),
        "psnr": [bounded_psnr(*pair) for pair in pairs],
        "ssim": [ssim(*pair) for pair in pairs],
    }


def frequencies(experiment: Experiment, pictures: int) -> Numbers:
    """Spectra of what the last scales add (figure 1c)."""
    samples = experiment.samples[:pictures]
    dense = experiment.generate(samples, None).pictures
    found = {"dense": [spectrum(picture) for picture in dense]}
    for label, config in experiment.configurations.table("skips"):
        without = experiment.generate(samples, config.pruning).pictures
        added = [
            full.astype(np.float64) - coarse.astype(np.float64)
            for full, coarse in zip(dense, without, strict=True)
        ]
        found[label] = [spectrum(difference) for difference in added]
    return found


def residual_energy(experiment: Experiment, pictures: int) -> Numbers:
    """Correlation, token by token, of a layer's residual energy with |projection| (figure 3)."""
    correlations: dict[str, list[list[float]]] = {}
    maps: list[dict[str, Any]] = []
    depth = experiment.configurations.depth
    last = experiment.configurations.schedule.final

    def record(layer: int, scale: Scale, energy: Tensor, projection: Tensor) -> None:
        if scale.tokens < SMALLEST_MAP:
            return
        rows = correlations.setdefault(str(scale), [])
        rows.append([_correlation(a, b) for a, b in zip(energy, projection, strict=True)])
        if scale.index == last.index and layer in (0, depth // 2, depth - 1) and len(maps) < 3:
            shown = [_as_bytes(values[0], scale) for values in (energy, projection)]
            maps.append({"layer": layer, "energy": shown[0], "projection": shown[1]})

    experiment.generate(experiment.samples[:pictures], ResidualProbe(record))
    return {"correlations": correlations, "maps": maps}


def saliency(experiment: Experiment, pictures: int) -> Numbers:
    """How much more of the kept tokens than of all tokens lies on objects (figure 6).

    Objects are found in the dense picture; one without any, or full of them, says nothing.
    """
    samples = experiment.samples[:pictures]
    dense = experiment.generate(samples, None)
    last = experiment.configurations.schedule.final
    masks = [object_tokens(picture, last) for picture in dense.pictures]
    found: dict[str, list[float]] = {}
    for label, config in experiment.configurations.table("ratio"):
        kept = experiment.models.generate(samples, config).report.scales[-1].kept_index
        if kept is not None:
            found[label] = [
                float(mask[index.cpu().numpy()].mean() / mask.mean())
                for mask, index in zip(masks, kept, strict=True)
                if 0 < mask.mean() < 1
            ]
    return found


def object_tokens(picture: NDArray[np.uint8], scale: Scale) -> NDArray[np.float64]:
    """Share of each token's pixels that lies on an object, [N]."""
    mask: NDArray[np.float64] = np.zeros(picture.shape[:2])
    for blob in segment(picture.astype(np.float32)).blobs:
        mask[blob.top : blob.bottom, blob.left : blob.right] = np.maximum(
            mask[blob.top : blob.bottom, blob.left : blob.right], blob.mask
        )
    rows, columns = picture.shape[0] // scale.height, picture.shape[1] // scale.width
    cells = mask[: rows * scale.height, : columns * scale.width]
    return cells.reshape(scale.height, rows, scale.width, columns).mean(axis=(1, 3)).ravel()


def _correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's; 0 where one side is constant."""
    pair = torch.stack([first, second]).double()
    centred = pair - pair.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1)
    if float(norms.min()) == 0.0:
        return 0.0
    return float(centred[0] @ centred[1] / (norms[0] * norms[1]))


def _as_bytes(values: Tensor, scale: Scale) -> list[list[int]]:
    """A map in 0..255; the brightest hundredth is clipped, as single tokens can outshine all others."""
    array: NDArray[Any] = values.float().cpu().numpy().reshape(-1, scale.width)
    top = max(float(np.percentile(array, 99)), 1e-12)
    return (np.clip(array / top, 0.0, 1.0) * 255).astype(int).tolist()
