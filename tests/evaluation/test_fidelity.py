"""PSNR, SSIM and the amplified difference."""

from __future__ import annotations

import numpy as np
import pytest

from stepvar.evaluation.fidelity import amplified_difference, psnr, ssim


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr_of_a_known_error():
    first = np.zeros((8, 8, 3), dtype=np.uint8)
    assert psnr(first, first + 255) == pytest.approx(0.0)
    assert psnr(first, first + 1) == pytest.approx(20 * np.log10(255))
    assert psnr(first, first) is None


def window():
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    line /= line.sum()
    return line[:, None] * line[None, :]


def plain_ssim(first, second):
    """The definition, window by window."""
    weights, values = window(), []
    for channel in range(3):
        for row in range(first.shape[0] - 10):
            for column in range(first.shape[1] - 10):
                x = first[row : row + 11, column : column + 11, channel].astype(float)
                y = second[row : row + 11, column : column + 11, channel].astype(float)
                mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
                variance_x = (weights * (x - mean_x) ** 2).sum()
                variance_y = (weights * (y - mean_y) ** 2).sum()
                covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
                c1, c2 = 2.55**2, 7.65**2
                luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
                values.append(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2))
    return np.mean(values)


def test_ssim_is_the_published_one():
    first = noise(0, 14, 17, 3)
    second = np.clip(first.astype(int) + np.random.default_rng(1).integers(-40, 40, first.shape), 0, 255)
    second = second.astype(np.uint8)
    assert ssim(first, second) == pytest.approx(plain_ssim(first, second), abs=1e-9)
    assert ssim(first, first) == pytest.approx(1.0)


def test_ssim_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(noise(0, 10, 20, 3), noise(1, 10, 20, 3))
    with pytest.raises(ValueError, match="one shape"):
        psnr(noise(0, 10, 20, 3), noise(1, 20, 10, 3))


def test_amplified_difference_is_clipped():
    first, second = np.full((1, 1, 3), 10, np.uint8), np.array([[[10, 13, 200]]], np.uint8)
    assert amplified_difference(first, second, 4.0).tolist() == [[[0, 12, 255]]]
