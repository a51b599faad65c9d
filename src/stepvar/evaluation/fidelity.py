"""How close one picture is to another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_PEAK = 255.0


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


def _require_same_shape(first: Pixels, second: Pixels) -> None:
    if first.shape != second.shape:
        raise ValueError(f"Pictures of one shape are needed; got {first.shape} and {second.shape}.")
