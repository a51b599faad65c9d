"""Visual tokenizer of the VAR family: a convolutional autoencoder around a multi-scale vector quantiser.

VAR, Switti and HART share it; a model's own class says no more than its name. Names of the autoencoder's
modules equal the keys of the published checkpoints.

Facts of the architecture: FoundationVision/VAR (MIT), ``models/vqvae.py`` and ``models/basic_vae.py``.

Shapes: B pictures of H x W pixels in [-1, 1], stride s, latent grid (H/s, W/s) of D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as functional
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from stepvar.generation.attention import attention
from stepvar.models.common.autoencoder import Autoencoder
from stepvar.models.common.base import BlockList
from stepvar.models.common.resizing import Grid
from stepvar.models.common.strip_decoding import decode_in_strips
from stepvar.models.common.vector_quantizer import MultiScaleIndex, VectorQuantizer


class _Normalization(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # torch's CPU kernel for channels-last inputs is inaccurate (errors up to 2e-2 in a decoded picture).
        return super().forward(x.contiguous() if x.device.type == "cpu" else x)


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _Normalization(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _Normalization(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class _Attention(nn.Module):
    """Every position attends to all others, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _Normalization(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)
        attended = attention(*qkv.chunk(3, dim=-1))
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).view_as(x))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(channels, channels)
        self.attn_1 = _Attention(channels)
        self.block_2 = _ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Level(nn.Module):
    """Residual blocks, each with attention at the coarsest resolution, and a change of resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attends: bool) -> None:
        super().__init__()
        self.downsample: _Downsample | None = None
        self.upsample: _Upsample | None = None
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(_ResidualBlock(*pair) for pair in pairwise(widths))
        self.attn = nn.ModuleList(_Attention(out_channels) for _ in range(blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for resampling in (self.downsample, self.upsample):
            if resampling is not None:
                x = resampling(x)
        return x


class Encoder(nn.Module):
    """Pictures ``[B, 3, H, W]`` to features ``[B, D, H/s, W/s]``.

    Args:
        channels: D.
        base_channels: channels of the first level.
        multipliers: channels of each level, fine to coarse, in units of ``base_channels``; every level but
            the last ends with a halving.
        blocks: residual blocks per level.
    """

    def __init__(self, channels: int, base_channels: int, multipliers: Sequence[int], blocks: int) -> None:
        super().__init__()
        widths = [base_channels, *(base_channels * multiplier for multiplier in multipliers)]
        coarsest = len(multipliers) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down: BlockList[_Level] = BlockList()
        for index in range(len(multipliers)):
            level = _Level(widths[index], widths[index + 1], blocks, attends=index == coarsest)
            if index < coarsest:
                level.downsample = _Downsample(widths[index + 1])
            self.down.append(level)
        self.mid = _Middle(widths[-1])
        self.norm_out = _Normalization(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents ``[B, D, H/s, W/s]`` to pictures ``[B, 3, H, W]``, not clamped.

    Args: as for :class:`Encoder`; ``multipliers`` are listed fine to coarse as well.
    """

    def __init__(self, channels: int, base_channels: int, multipliers: Sequence[int], blocks: int) -> None:
        super().__init__()
        widths = [*(base_channels * multiplier for multiplier in multipliers)]
        widths.append(widths[-1])
        coarsest = len(multipliers) - 1
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        self.up: BlockList[_Level] = BlockList()
        for index in range(len(multipliers)):
            level = _Level(widths[index + 1], widths[index], blocks, attends=index == coarsest)
            if index > 0:
                level.upsample = _Upsample(widths[index])
            self.up.append(level)
        self.norm_out = _Normalization(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class VectorQuantizedVAEConfig(Mapping[str, Any]):
    """Arguments of `VectorQuantizedVAE`, by name and as attributes."""

    codes: int
    channels: int
    base_channels: int
    multipliers: Sequence[int]
    encoder_blocks: int
    decoder_blocks: int
    kernel: int
    refinements: int
    refine_by_scale: bool
    refinement_share: float


class VectorQuantizedVAE(Autoencoder[VectorQuantizedVAEConfig]):
    """Pictures to code indices per scale and back.

    Args:
        codes: V, size of the codebook.
        channels: D, channels of a code.
        base_channels: channels at full resolution.
        multipliers: channels of the levels, fine to coarse, in units of ``base_channels``.
        encoder_blocks, decoder_blocks: residual blocks per level.
        kernel: side of the convolutions on either side of the quantiser.
        refinements, refine_by_scale, refinement_share: see :class:`VectorQuantizer`.
    """

    # Indices must not depend on the number format of the networks.
    _keep_in_fp32_modules: list[str] | None = ["quantizer"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        codes: int = 4096,
        channels: int = 32,
        base_channels: int = 160,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        kernel: int = 3,
        refinements: int = 4,
        refine_by_scale: bool = False,
        refinement_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, base_channels, multipliers, encoder_blocks)
        self.decoder = Decoder(channels, base_channels, multipliers, decoder_blocks)
        self.quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.quantizer = VectorQuantizer(codes, channels, refinements, refine_by_scale, refinement_share)

    @property
    def stride(self) -> int:
        """Pixels per latent position in each direction."""
        return 2 ** (len(self.config.multipliers) - 1)

    def encode_features(self, image: Tensor) -> Tensor:
        """Encode pictures ``[B, 3, H, W]`` in [-1, 1] to features ``[B, D, H/s, W/s]``, float32.

        Raises:
            ValueError: the size is no multiple of the stride.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {tuple(image.shape)}")
        if image.shape[2] % self.stride or image.shape[3] % self.stride:
            raise ValueError(
                f"height and width must be multiples of {self.stride}, got {tuple(image.shape[2:])}"
            )
        return self.quant_conv(self.encoder(image.to(self.dtype))).float()

    def encode(self, image: Tensor, grids: Sequence[Grid]) -> MultiScaleIndex:
        """Encode pictures ``[B, 3, H, W]`` in [-1, 1] to the codes of every scale, coarse to fine."""
        return self.quantizer.quantize(self.encode_features(image), grids)

    def decode_pixels(self, latent: Tensor, in_strips: bool = False) -> Tensor:
        """Decode summed codes ``[B, D, H/s, W/s]`` to pictures ``[B, 3, H, W]``, float32 in [-1, 1].

        Args:
            latent: the codes.
            in_strips: decode strips of rows, one after the other: less memory, more time.
        """
        features = self.post_quant_conv(latent.to(self.dtype).contiguous())
        decoded = decode_in_strips(self.decoder, features) if in_strips else self.decoder(features)
        return decoded.float().clamp(-1.0, 1.0)

    def decode_index(self, index: Sequence[Tensor], grids: Sequence[Grid]) -> Tensor:
        """Decode code indices per scale, each ``[B, N]``, to pictures ``[B, 3, H, W]`` in [-1, 1].

        Args:
            index: fewer scales than the schedule decode a coarser picture of the same size.
            grids: (h, w) of every scale of the schedule.

        Raises:
            ValueError: no scale was given.
        """
        if not index:
            raise ValueError("codes of at least one scale are needed, got none")
        return self.decode_pixels(self.quantizer.partial_latents(index, grids)[-1])
