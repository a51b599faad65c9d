"""Fidelity of one picture to another: PSNR, SSIM, fine detail, equal values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]

_PEAK = 255.0

IDENTICAL_DECIBELS = float(10.0 * np.log10(12.0 * _PEAK**2))
"""What identical pictures count as in an average of PSNR: 58.9 dB, the error of rounding to 8 bits alone."""


def psnr(first: Pixels, second: Pixels) -> float | None:
    """Peak signal-to-noise ratio in dB; None when the pictures are identical.

    Args:
        first, second: 8-bit pictures of one shape.

    Raises:
        ValueError: When the shapes differ.
    """
    _require_same_shape(first, second)
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return None if error == 0.0 else float(10.0 * np.log10(_PEAK**2 / error))


def ssim(first: Pixels, second: Pixels) -> float:
    """Structural similarity, 1 when the pictures are identical; the mean over pixels and channels.

    Args:
        first, second: 8-bit pictures [H, W, 3] of at least 11 x 11 pixels.

    Raises:
        ValueError: When the shapes differ or are too small.

    Source: Wang et al. 2004, with its Gaussian window of 11 x 11 and deviation 1.5.
    """
    from scipy.ndimage import gaussian_filter

    _require_same_shape(first, second)
    margin = 5
    if min(first.shape[:2]) <= 2 * margin:
        raise ValueError(f"SSIM needs at least 11 x 11 pixels; got {first.shape[1]} x {first.shape[0]}.")

    def blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth = gaussian_filter(values, sigma=(1.5, 1.5, 0.0), radius=(margin, margin, 0))
        return smooth[margin:-margin, margin:-margin]

    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x = blurred(x * x) - mean_x**2
    variance_y = blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(likeness.mean())


def amplified_difference(first: Pixels, second: Pixels, gain: float) -> Pixels:
    """|first - second| times a gain, as a picture: black is equal."""
    difference = np.abs(first.astype(np.float32) - second.astype(np.float32)) * gain
    return np.clip(difference, 0.0, _PEAK).astype(np.uint8)


def bounded_psnr(first: Pixels, second: Pixels) -> float:
    """PSNR that can be averaged: never above `IDENTICAL_DECIBELS`."""
    decibels = psnr(first, second)
    return IDENTICAL_DECIBELS if decibels is None else min(decibels, IDENTICAL_DECIBELS)


def _luminance_spectrum(picture: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spectral energy of a picture's luminance, and each coefficient's frequency in cycles a pixel."""
    light = picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    height, width = light.shape
    energy = np.abs(np.fft.fft2(light)) ** 2 / (height * width) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    return energy, frequency


def high_frequency_energy(picture: NDArray[Any], cutoff: float = 0.125) -> float:
    """Mean square of the luminance's fine detail, in squared grey levels.

    Args:
        picture: [H, W, 3], 8-bit or a signed difference.
        cutoff: Lowest frequency that counts, in cycles a pixel; 0.5 is the finest grating.
    """
    energy, frequency = _luminance_spectrum(picture)
    return float(energy[frequency >= cutoff].sum())


def spectrum(picture: NDArray[Any], bands: int = 16) -> list[float]:
    """Energy of the luminance by frequency: equal rings from 0 to 0.5 cycles a pixel, the mean left out.

    Args:
        picture: [H, W, 3], 8-bit or a signed difference.
    """
    energy, frequency = _luminance_spectrum(picture)
    energy[0, 0] = 0.0
    ring = np.minimum((frequency * 2 * bands).astype(int), bands - 1)
    return np.bincount(ring.ravel(), weights=energy.ravel(), minlength=bands).tolist()


def value_agreement(
    first: Mapping[int, Tensor], second: Mapping[int, Tensor], image: int = 0
) -> dict[int, float]:
    """Share of the sampled values (bits, or codes) that two runs have in common, by index of the scale.

    Args:
        first, second: `Report.choices` of runs on one schedule; scales that only one ran are left out.
            Probabilities of bits count as the likelier bit.
        image: Which picture of the batch.
    """
    return {
        index: float((_hard(first[index][image]) == _hard(second[index][image])).float().mean())
        for index in sorted(first.keys() & second.keys())
    }


def _hard(values: Tensor) -> Tensor:
    return values > 0.5 if values.is_floating_point() else values


def _require_same_shape(first: Pixels, second: Pixels) -> None:
    if first.shape != second.shape:
        raise ValueError(f"Pictures of one shape are needed; got {first.shape} and {second.shape}.")
