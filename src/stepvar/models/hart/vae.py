"""Visual tokenizer of HART: the codebook tokenizer of the VAR family, with a continuous last scale.

All scales but the last are codes, enlarged and refined. The last scale is what they leave over, as it is: a
code, and the residual that the code leaves over in turn. The two together give the features back exactly.

Source: mit-han-lab/hart, hart/modules/models/autoencoder/quantize/hart_hybrid_quantize.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# diffusers looks up the base class of a saved component on the module that the component is from.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import Tensor

from stepvar.models.common.resizing import Grid
from stepvar.models.common.vector_quantizer import MultiScaleIndex
from stepvar.models.common.vq_vae import VectorQuantizedVAE


@dataclass(frozen=True)
class HybridCode:
    """What encoding one batch of pictures yields.

    Attributes:
        index: Per scale, int64 [B, N]: the codes in row-major order.
        partial_latents: Per scale but the last, [B, D, H, W]: the sum up to and including it.
        target: [B, N, D] what the last scale stands for: its codes and their residuals together.
        residual: [B, N, D] what the codes of the last scale leave over: what the diffusion head learns.
    """

    index: list[Tensor]
    partial_latents: list[Tensor]
    target: Tensor
    residual: Tensor

    @property
    def latent(self) -> Tensor:
        """The sum of all scales with the residuals, [B, D, H, W]: the features again."""
        return self.with_last(self.target)

    @property
    def discrete_latent(self) -> Tensor:
        """The sum of the codes alone."""
        return self.with_last(self.target - self.residual)

    def with_last(self, values: Tensor) -> Tensor:
        """The sum of all scales, with other values [B, N, D] at the last one."""
        coarse = self.partial_latents[-1]
        return coarse + values.transpose(1, 2).unflatten(2, coarse.shape[-2:])


class HARTVAE(VectorQuantizedVAE):
    """Pictures to codes and a residual, and back: 4096 codes of 32 channels, stride 16."""

    def quantize_hybrid(self, features: Tensor, grids: Sequence[Grid]) -> HybridCode:
        """Quantises features [B, D, H, W]; all but the last scale as `VectorQuantizer.quantize` does.

        Args:
            grids: (h, w) of every scale, coarse to fine; the last one must be (H, W).

        Raises:
            ValueError: When it is not.
        """
        plain: MultiScaleIndex = self.quantizer.quantize(features, grids)
        target = plain.remainders[-1].flatten(2).transpose(1, 2)
        residual = target - self.quantizer.lookup(plain.index[-1])
        return HybridCode(plain.index, plain.partial_latents[:-1], target, residual)

    def encode_hybrid(self, image: Tensor, grids: Sequence[Grid]) -> HybridCode:
        """Encodes pictures [B, 3, H, W] in [-1, 1] to codes per scale and a residual."""
        return self.quantize_hybrid(self.encode_features(image), grids)
