"""Losses of the VAEs: terms for texture and edges, and terms that keep the bits in use.

Pictures are float32 ``[B, 3, H, W]`` in [-1, 1]; every loss is a scalar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

FREQUENCY_PATCH = 16


def gradient_loss(picture: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical pixel differences."""
    error = picture - target
    across = (error[..., :, 1:] - error[..., :, :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return across + down


def frequency_loss(picture: Tensor, target: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Difference of the log magnitudes of the spectra of 16 x 16 patches, per colour channel.

    A mean absolute error learns fine texture last, because a flat tone is a good guess for a texture of
    unknown phase. The magnitudes of a patch's spectrum compare the amount of each frequency instead.

    Args:
        picture, target: the pictures to compare.
        offset: rows and columns to cut off before tiling, so that patch borders can be moved about.
    """
    both = torch.stack((picture, target))[..., offset[0] :, offset[1] :]
    rows, columns = (side // FREQUENCY_PATCH * FREQUENCY_PATCH for side in both.shape[-2:])
    patches = both[..., :rows, :columns].unflatten(-1, (-1, FREQUENCY_PATCH))
    patches = patches.unflatten(-3, (-1, FREQUENCY_PATCH)).transpose(-3, -2)
    magnitudes = torch.log1p(torch.fft.rfft2(patches).abs())
    return (magnitudes[0] - magnitudes[1]).abs().mean()


def commitment_loss(features: Tensor, latent: Tensor) -> Tensor:
    """Mean squared distance of the features from the sum of their codes."""
    return functional.mse_loss(features, latent.detach())


def entropy_loss(residuals: Sequence[Tensor]) -> Tensor:
    """One minus the mean entropy (in bits) of every bit of every scale over the batch: zero is ideal.

    The sign is softened, so that gradients reach bits that always come out the same.

    Args:
        residuals: per scale, the input of the quantiser, float32 ``[B, d, h, w]``.
    """
    entropies = []
    for residual in residuals:
        sharpness = 4.0 * math.sqrt(residual.shape[1])
        share = torch.sigmoid(sharpness * residual).mean(dim=(0, 2, 3)).clamp(1e-4, 1 - 1e-4)
        entropies.append(bit_entropy(share).mean())
    return 1.0 - torch.stack(entropies).mean()


def bit_entropy(share: Tensor) -> Tensor:
    """Entropy in bits of a bit that is one in ``share`` of the cases, elementwise."""
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / math.log(2.0)


def low_pass(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Remove the detail a picture of ``size`` (height, width) cannot show, keeping the number of pixels."""
    small = functional.adaptive_avg_pool2d(picture, size)
    return functional.interpolate(small, size=picture.shape[-2:], mode="bilinear", align_corners=False)
