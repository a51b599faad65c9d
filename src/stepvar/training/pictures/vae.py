"""Training of the picture VAE on crops of rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.models.infinity.quantizer import MultiScaleCode
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.training.common.crops import stream, to_bytes, to_signed
from stepvar.training.common.vae_losses import bit_entropy, low_pass
from stepvar.training.common.vae_trainer import (
    Reconstruction,
    VAETrainer,
    VAETraining,
    initialise_vae,
    mean_psnr,
    scale_entropies,
)
from stepvar.training.pictures.crops import PictureCrops, fixed_pictures
from stepvar.training.pictures.sizes import BITS, SIZES

_EVALUATION_PICTURES = 16


@dataclass(frozen=True)
class PictureVAETraining(VAETraining):
    """Settings of a run.

    Attributes:
        truncated_pixels: Pixels per token side of the target of a truncated picture, up to eight. Fewer
            keep more detail for the last scales; none compares it with the whole picture, so that the
            decoder learns to draw what scales that are left out would have told.
        truncations: How many of the last scales may be missing from a truncated picture.
        decoder_only: Whether the encoder stays as it is, so that a transformer trained on its codes
            remains valid.
        size: Name of the pictures' size, see `stepvar.training.pictures.sizes.SIZES`.
    """

    truncated_pixels: int = 8
    truncations: int = 5
    decoder_only: bool = False
    size: str = "192"


def build_vae() -> InfinityVAE:
    """The picture VAE with fresh weights: 8 x 8 pixels a token, 16 bits, 2.6 M parameters."""
    vae = InfinityVAE(
        codebook_dim=BITS,
        base_channels=32,
        encoder_multipliers=(1, 2, 4),
        decoder_multipliers=(1, 2, 4),
        encoder_blocks=1,
        decoder_blocks=2,
        norm_groups=8,
        pixel_block=2,
    )
    initialise_vae(vae)
    return vae


class PictureVAETrainer(VAETrainer[PictureVAETraining, InfinityVAE]):
    """Trains the picture VAE."""

    def __init__(self, settings: PictureVAETraining) -> None:
        self.size = SIZES[settings.size]
        super().__init__(settings, self.size.canvas)

    def build(self) -> InfinityVAE:
        start = self.settings.start
        vae = InfinityVAE.from_pretrained(start, torch_dtype=torch.float32) if start else build_vae()
        vae.encoder.requires_grad_(not self.settings.decoder_only)
        return vae

    def crops(self, batch: int, side: int, seed: int) -> Iterator[Tensor]:
        return stream(PictureCrops(batch, side, seed, self.canvas), self.settings.workers)

    def reconstruct(self, target: Tensor) -> Reconstruction:
        grids = self.size.crop_grids(target.shape[-1])
        features = self.model.encoder(target).float()
        code = self.model.quantize(features, grids)
        whole = len(target) - self.truncated(len(target))
        latent, target = self._truncate(code, target, grids, whole)
        picture = self.model.decoder(latent).float()
        return Reconstruction(picture, target, whole, features, code.latent, code.residuals, code.bits)

    def _truncate(
        self, code: MultiScaleCode, target: Tensor, grids: list[tuple[int, int]], whole: int
    ) -> tuple[Tensor, Tensor]:
        """Replaces the pictures after the first `whole` by their first scales, and their targets."""
        if whole == len(target):
            return code.latent, target
        first = len(grids) - 1 - self.settings.truncations
        last = first + int(torch.randint(self.settings.truncations, ()))
        latent = torch.cat((code.latent[:whole], code.partial_latents[last][whole:]))
        if not self.settings.truncated_pixels:
            return latent, target
        rows, columns = (cells * self.settings.truncated_pixels for cells in grids[last])
        return latent, torch.cat((target[:whole], low_pass(target[whole:], (rows, columns))))

    def evaluate(self) -> tuple[dict[str, Any], Tensor]:
        return measure_vae(
            self.average, fixed_pictures(_EVALUATION_PICTURES, self.canvas, seed=77), self.size.grids
        )


@torch.no_grad()
def measure_vae(
    vae: InfinityVAE, pictures: Tensor, grids: list[tuple[int, int]]
) -> tuple[dict[str, Any], Tensor]:
    """Measures a VAE on whole pictures.

    Args:
        vae: In evaluation mode.
        pictures: uint8 ``[B, 3, side, side]``, at least six.
        grids: scale schedule of these pictures.

    Returns:
        The measures (mean PSNR in dB after 5, 6, ... all scales, entropy of the bits per scale), and a sheet
        uint8 ``[rows, columns, 3]``: original, reconstruction, without the last, and the last two scales.
    """
    device = next(vae.parameters()).device
    target = to_signed(pictures.to(device))
    code = vae.encode(target, grids)
    decoded = [vae.decode_pixels(latent) for latent in code.partial_latents[4:]]
    measures = {
        "evaluation_psnr": [round(mean_psnr(picture, target), 2) for picture in decoded],
        "evaluation_entropy": [round(value, 3) for value in scale_entropies(code.bits).tolist()],
        "least_entropy": [
            round(bit_entropy(bits.float().mean(dim=(0, 1, 2))).min().item(), 3) for bits in code.bits
        ],
    }
    columns = [to_bytes(part[:6]) for part in (target, decoded[-1], decoded[-2], decoded[-3])]
    side = pictures.shape[-1]
    sheet = torch.stack(columns).permute(1, 3, 0, 4, 2).reshape(6 * side, len(columns) * side, 3)
    return measures, sheet.cpu()
