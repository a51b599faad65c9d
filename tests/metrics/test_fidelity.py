"""How close one picture is to another, in pixels, in frequencies and in sampled values."""

from __future__ import annotations

import numpy as np
import pytest

from stepvar.metrics.fidelity import (
    IDENTICAL_DECIBELS,
    amplified_difference,
    bounded_psnr,
    high_frequency_energy,
    psnr,
    spectrum,
    ssim,
    value_agreement,
)


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


def test_our_measures_agree_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    import torch

    first, second = noise(0, 40, 30, 3), noise(1, 40, 30, 3)
    planes = [torch.from_numpy(picture).permute(2, 0, 1)[None].double() for picture in (first, second)]
    # Theirs averages over reflected borders too, which the published definition leaves out.
    _, full = torchmetrics.structural_similarity_index_measure(
        *planes, data_range=255.0, return_full_image=True
    )
    assert ssim(first, second) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-5)
    theirs = torchmetrics.peak_signal_noise_ratio(*planes, data_range=255.0)
    assert psnr(first, second) == pytest.approx(float(theirs), abs=1e-5)


def test_bounded_psnr_can_be_averaged():
    first = noise(0, 32, 32, 3)
    almost = first.copy()
    almost[0, 0, 0] ^= 1
    assert bounded_psnr(first, first) == bounded_psnr(first, almost) == IDENTICAL_DECIBELS
    assert bounded_psnr(first, 255 - first) == psnr(first, 255 - first)


def grating(cycles, amplitude=50.0):
    wave = 128 + amplitude * np.cos(2 * np.pi * cycles * np.arange(64) / 64)
    return np.repeat(np.repeat(wave[None, :, None], 64, axis=0), 3, axis=2)


def test_only_fine_gratings_are_high_frequencies():
    # A cosine of amplitude a has a mean square of a^2 / 2.
    assert high_frequency_energy(grating(20)) == pytest.approx(1250.0)
    assert high_frequency_energy(grating(4)) == pytest.approx(0.0, abs=1e-9)
    assert high_frequency_energy(grating(4), cutoff=0.05) == pytest.approx(1250.0)


def test_a_spectrum_holds_all_of_the_variance():
    picture = noise(3, 32, 48, 3)
    light = picture.astype(float) @ [0.299, 0.587, 0.114]
    rings = spectrum(picture)
    assert sum(rings) == pytest.approx(light.var())
    assert int(np.argmax(spectrum(grating(20)))) == 20 * 2 * 16 // 64


def test_agreement_of_sampled_values():
    import torch

    first = {0: torch.tensor([[[1, 0]], [[1, 1]]]), 1: torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 0]]])}
    second = {0: torch.tensor([[[1, 1]], [[1, 1]]]), 2: torch.zeros(2, 1, 1)}
    assert value_agreement(first, second) == {0: 0.5}
    assert value_agreement(first, second, image=1) == {0: 1.0}
    assert value_agreement(first, first) == {0: 1.0, 1: 1.0}
