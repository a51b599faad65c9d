"""Training of the embedded tokenizer on rendered scenes, within a budget of minutes.

Run ``python -m stepvar.training.pictures.train_vae --minutes 35 --output runs/tokenizer``; the same command
resumes an interrupted run. Works on a laptop's CPU (bfloat16 autocast, float32 weights) and on CUDA.

A quarter of every batch decodes only the first scales and is compared with the picture at the resolution
these scales stand for. So coarse scales carry layout and colour, and the last ones carry texture and edges.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.models.infinity.quantizer import MultiScaleCode
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.training.pictures.crops import crop_batches, fixed_pictures, to_bytes, to_signed
from stepvar.training.pictures.sizes import SIZES
from stepvar.training.run import read_settings
from stepvar.training.vae_losses import bit_entropy, low_pass
from stepvar.training.vae_trainer import (
    AutoencoderTrainer,
    AutoencoderTraining,
    Reconstruction,
    keep_variance,
    mean_psnr,
    scale_entropies,
)

logger = logging.getLogger(__name__)

_TRUNCATIONS = 5
_EVALUATION_PICTURES = 16


@dataclass(frozen=True)
class TokenizerTraining(AutoencoderTraining):
    """Settings of a run.

    Attributes:
        truncated_pixels: Pixels per token side that a picture of the first scales is asked to resolve, up to
            eight. Fewer keep more detail for the last scales.
        size: Name of the pictures' size, see `stepvar.training.pictures.sizes.SIZES`.
    """

    truncated_pixels: int = 8
    size: str = "192"


def build_tokenizer() -> InfinityVAE:
    """Build the embedded tokenizer with random weights: stride 8, 16 bits, 2.6 M parameters."""
    tokenizer = InfinityVAE(
        codebook_dim=16,
        base_channels=32,
        encoder_multipliers=(1, 2, 4),
        decoder_multipliers=(1, 2, 4),
        encoder_blocks=1,
        decoder_blocks=2,
        norm_groups=8,
        pixel_block=2,
    )
    keep_variance(tokenizer)
    return tokenizer


class TokenizerTrainer(AutoencoderTrainer[TokenizerTraining, InfinityVAE]):
    """Trains the picture tokenizer."""

    def __init__(self, settings: TokenizerTraining) -> None:
        self.size = SIZES[settings.size]
        super().__init__(settings, self.size.canvas)

    def build(self) -> InfinityVAE:
        if self.settings.start:
            return InfinityVAE.from_pretrained(self.settings.start, torch_dtype=torch.float32)
        return build_tokenizer()

    def batches(self, batch: int, side: int, seed: int) -> Iterator[Tensor]:
        return crop_batches(batch, side, seed, self.canvas, self.settings.workers)

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
        first = len(grids) - 1 - _TRUNCATIONS
        last = first + int(torch.randint(_TRUNCATIONS, ()))
        rows, columns = (cells * self.settings.truncated_pixels for cells in grids[last])
        coarse = low_pass(target[whole:], (rows, columns))
        latent = torch.cat((code.latent[:whole], code.partial_latents[last][whole:]))
        return latent, torch.cat((target[:whole], coarse))

    def evaluate(self) -> tuple[dict[str, Any], Tensor]:
        return measure(
            self.average, fixed_pictures(_EVALUATION_PICTURES, self.canvas, seed=77), self.size.grids
        )


@torch.no_grad()
def measure(tokenizer: InfinityVAE, pictures: Tensor, grids: list[tuple[int, int]]) -> tuple[dict, Tensor]:
    """Measure a tokenizer on whole pictures.

    Args:
        tokenizer: in evaluation mode.
        pictures: uint8 ``[B, 3, side, side]``, at least six.
        grids: scale schedule of these pictures.

    Returns:
        The measures (mean PSNR in dB after 5, 6, ... all scales, entropy of the bits per scale), and a sheet
        uint8 ``[rows, columns, 3]``: original, reconstruction, without the last, and the last two scales.
    """
    device = next(tokenizer.parameters()).device
    target = to_signed(pictures.to(device))
    code = tokenizer.encode(target, grids)
    decoded = [tokenizer.decode(latent) for latent in code.partial_latents[4:]]
    measures = {
        "evaluation_psnr": [round(mean_psnr(picture, target), 2) for picture in decoded],
        "evaluation_entropy": [round(value, 3) for value in scale_entropies(code.bits).tolist()],
        "least_entropy": [
            round(bit_entropy(bits.float().mean(dim=(0, 1, 2))).min().item(), 3) for bits in code.bits
        ],
    }
    columns = [to_bytes(shown[:6]) for shown in (target, decoded[-1], decoded[-2], decoded[-3])]
    side = pictures.shape[-1]
    sheet = torch.stack(columns).permute(1, 3, 0, 4, 2).reshape(6 * side, len(columns) * side, 3)
    return measures, sheet.cpu()


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trainer = TokenizerTrainer(read_settings(TokenizerTraining, __doc__, arguments))
    logger.info("tokenizer saved to %s", trainer.run())


if __name__ == "__main__":
    main()
