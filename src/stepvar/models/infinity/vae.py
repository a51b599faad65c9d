"""Visual tokenizer of Infinity: a convolutional autoencoder around a multi-scale sign quantiser.

Module names equal the keys of the published checkpoints, so a converted state dict loads strictly.

Facts of the architecture: FoundationVision/Infinity (MIT), ``infinity/models/bsq_vae/``, files ``vae.py``,
``flux_vqgan.py`` and ``conv.py``.

Shapes: B pictures of H x W pixels in [-1, 1], stride s, latent grid (H/s, W/s) with d bits per position.
With ``patchify`` a transformer token stands for 2 x 2 latent positions and holds 4d bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.configuration_utils import register_to_config

# diffusers looks up the base class of a saved component on the module that the component is from.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import Tensor, nn

from stepvar.models.common.autoencoder import Autoencoder
from stepvar.models.common.base import BlockList
from stepvar.models.common.strip_decoding import decode_in_strips
from stepvar.models.infinity.quantizer import (
    Grid,
    MultiScaleCode,
    latent_bits_from_tokens,
    latent_from_bits,
    quantize_multiscale,
    tokens_from_latent_bits,
)

PUBLISHED_VAE_TYPES = (14, 16, 18, 20, 24, 32, 64)


class _Convolution(nn.Module):
    """A convolution under the name ``conv``, as the official keys spell it."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Normalization(nn.Module):
    """A group norm under the name ``norm``, as the official keys spell it."""

    def __init__(self, channels: int, groups: int | None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups or _official_groups(channels), channels, eps=1e-6, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        # torch's CPU kernel for channels-last inputs is inaccurate (errors up to 2e-2 in a decoded picture).
        return self.norm(x.contiguous() if x.device.type == "cpu" else x)


def _official_groups(channels: int) -> int:
    for groups in (32, 24):
        if channels % groups == 0:
            return groups
    raise ValueError(
        f"channel counts must be multiples of 32 or 24, got {channels}; other sizes need norm_groups"
    )


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int | None) -> None:
        super().__init__()
        self.norm1 = _Normalization(in_channels, groups)
        self.conv1 = _Convolution(in_channels, out_channels)
        self.norm2 = _Normalization(out_channels, groups)
        self.conv2 = _Convolution(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = _Convolution(in_channels, out_channels, kernel=1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Convolution(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int | None) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(channels, channels, groups)
        self.block_2 = _ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class _Level(nn.Module):
    """Residual blocks, and a change of resolution under the name that the official keys have for it."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int | None) -> None:
        super().__init__()
        self.downsample: _Downsample | None = None
        self.upsample: _Upsample | None = None
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(_ResidualBlock(*pair, groups) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for resampling in (self.downsample, self.upsample):
            if resampling is not None:
                x = resampling(x)
        return x


class Encoder(nn.Module):
    """Pictures ``[B, 3, H, W]`` to features ``[B, d, H/s, W/s]``.

    Args:
        codebook_dim: d, channels of the features.
        base_channels: channels of the first level.
        multipliers: channels of each level, fine to coarse, in units of ``base_channels``.
        blocks: residual blocks per level.
        halvings: number of levels that end with a halving; s is two to this power.
        groups: groups of every norm; None follows the official rule (32, else 24).
        pixel_block: side of the pixel squares that are folded into channels first.
    """

    def __init__(
        self,
        codebook_dim: int,
        base_channels: int,
        multipliers: Sequence[int],
        blocks: int,
        halvings: int,
        groups: int | None = None,
        pixel_block: int = 1,
    ) -> None:
        super().__init__()
        channels = base_channels
        self.pixel_block = pixel_block
        self.conv_in = _Convolution(3 * pixel_block**2, channels)
        self.down: BlockList[_Level] = BlockList()
        for index, multiplier in enumerate(multipliers):
            level = _Level(channels, base_channels * multiplier, blocks, groups)
            channels = base_channels * multiplier
            if index < halvings:
                level.downsample = _Downsample(channels)
            self.down.append(level)
        self.mid = _Middle(channels, groups)
        self.norm_out = _Normalization(channels, groups)
        self.conv_out = _Convolution(channels, codebook_dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(functional.pixel_unshuffle(image, self.pixel_block))
        for level in self.down:
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents ``[B, d, H/s, W/s]`` to pictures ``[B, 3, H, W]``, not clamped.

    Args: as for :class:`Encoder`; ``multipliers`` are listed fine to coarse as well.
    """

    def __init__(
        self,
        codebook_dim: int,
        base_channels: int,
        multipliers: Sequence[int],
        blocks: int,
        halvings: int,
        groups: int | None = None,
        pixel_block: int = 1,
    ) -> None:
        super().__init__()
        channels = base_channels * multipliers[-1]
        self.pixel_block = pixel_block
        self.conv_in = _Convolution(codebook_dim, channels)
        self.mid = _Middle(channels, groups)
        levels = []
        for index in reversed(range(len(multipliers))):
            level = _Level(channels, base_channels * multipliers[index], blocks, groups)
            channels = base_channels * multipliers[index]
            if 1 <= index <= halvings:
                level.upsample = _Upsample(channels)
            levels.append(level)
        self.up: BlockList[_Level] = BlockList(reversed(levels))
        self.norm_out = _Normalization(channels, groups)
        self.conv_out = _Convolution(channels, 3 * pixel_block**2)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return functional.pixel_shuffle(self.conv_out(functional.silu(self.norm_out(x))), self.pixel_block)

    def in_strips(self, latent: Tensor) -> Tensor:
        """The same with less memory, in strips of rows; see `decode_in_strips`."""
        return functional.pixel_shuffle(decode_in_strips(self, latent), self.pixel_block)


class InfinityVAEConfig(Mapping[str, Any]):
    """Arguments of `InfinityVAE`, by name and as attributes."""

    codebook_dim: int
    base_channels: int
    encoder_multipliers: Sequence[int]
    decoder_multipliers: Sequence[int]
    encoder_blocks: int
    decoder_blocks: int
    patchify: bool
    stride: int | None
    norm_groups: int | None
    pixel_block: int


class InfinityVAE(Autoencoder[InfinityVAEConfig]):
    """The bitwise autoencoder: pictures to bits per scale and back.

    Args:
        codebook_dim: d, bits per latent position.
        base_channels: channels at full resolution.
        encoder_multipliers, decoder_multipliers: channels of the levels, fine to coarse, in units of
            ``base_channels``.
        encoder_blocks, decoder_blocks: residual blocks per level.
        patchify: whether a transformer token stands for 2 x 2 latent positions.
        stride: pixels per latent position, a power of two; None means one halving between levels.
        norm_groups: groups of every norm; None follows the official rule (32, else 24), which for few
            channels leaves one channel per group.
        pixel_block: side of the pixel squares that the networks fold into channels, 1 as published. With 2,
            nothing runs at full resolution, which halves the time of a small decoder.

    Raises:
        ValueError: the stride is no power of two or needs more levels than there are.
    """

    # Bits are signs of what the encoder says, so its numbers stay exact whatever the decoder runs in; VAREdit
    # reads them as they are.
    _keep_in_fp32_modules: list[str] | None = ["encoder"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        codebook_dim: int = 32,
        base_channels: int = 128,
        encoder_multipliers: Sequence[int] = (1, 2, 4, 4, 4),
        decoder_multipliers: Sequence[int] = (1, 2, 4, 4, 4),
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        patchify: bool = False,
        stride: int | None = None,
        norm_groups: int | None = None,
        pixel_block: int = 1,
    ) -> None:
        super().__init__()
        largest = pixel_block * 2 ** (min(len(encoder_multipliers), len(decoder_multipliers)) - 1)
        self.stride = largest if stride is None else stride
        if self.stride < 1:
            raise ValueError(f"stride must be a power of two up to {largest}, got {stride}")
        halvings = round(math.log2(self.stride / pixel_block))
        if pixel_block * 2**halvings != self.stride or self.stride > largest:
            raise ValueError(f"stride must be a power of two up to {largest}, got {stride}")
        self.encoder = Encoder(
            codebook_dim,
            base_channels,
            encoder_multipliers,
            encoder_blocks,
            halvings,
            norm_groups,
            pixel_block,
        )
        self.decoder = Decoder(
            codebook_dim,
            base_channels,
            decoder_multipliers,
            decoder_blocks,
            halvings,
            norm_groups,
            pixel_block,
        )

    @classmethod
    def published(cls, vae_type: int) -> InfinityVAE:
        """Build the published architecture with ``vae_type`` bits per latent position, weights random.

        Raises:
            ValueError: no such tokenizer was published.
        """
        if vae_type not in PUBLISHED_VAE_TYPES:
            raise ValueError(f"vae_type must be one of {PUBLISHED_VAE_TYPES}, got {vae_type}")
        patchify = vae_type == 14
        multipliers = (1, 2, 4, 4) if patchify else (1, 2, 4, 4, 4)
        return cls(
            codebook_dim=vae_type,
            encoder_multipliers=multipliers,
            decoder_multipliers=multipliers,
            patchify=patchify,
        )

    @property
    def token_stride(self) -> int:
        """Pixels per transformer token in each direction."""
        return self.stride * (2 if self.config.patchify else 1)

    @property
    def bits_per_token(self) -> int:
        """Bits per transformer token: d, or 4d with patchify."""
        return self.config.codebook_dim * (4 if self.config.patchify else 1)

    def latent_grids(self, schedule: Sequence[Sequence[int]]) -> list[Grid]:
        """Latent grids of a schedule of token grids, (h, w) or the official (1, h, w)."""
        factor = 2 if self.config.patchify else 1
        return [(int(entry[-2]) * factor, int(entry[-1]) * factor) for entry in schedule]

    def encode_features(self, image: Tensor) -> Tensor:
        """Encode pictures ``[B, 3, H, W]`` in [-1, 1] to features ``[B, d, H/s, W/s]``, float32.

        Raises:
            ValueError: the size is no multiple of the stride.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {tuple(image.shape)}")
        if image.shape[2] % self.stride or image.shape[3] % self.stride:
            raise ValueError(
                f"height and width must be multiples of {self.stride}, got {tuple(image.shape[2:])}"
            )
        weights = self.encoder.conv_in.conv.weight
        return self.encoder(image.to(weights.dtype)).float()

    def quantize(
        self,
        features: Tensor,
        schedule: Sequence[Sequence[int]],
        flip_probability: float | Tensor = 0.0,
        generator: torch.Generator | None = None,
    ) -> MultiScaleCode:
        """Quantise features ``[B, d, H/s, W/s]`` over a schedule of token grids.

        See :func:`~stepvar.models.infinity.quantizer.quantize_multiscale` for the flips and the errors.
        """
        return quantize_multiscale(features, self.latent_grids(schedule), flip_probability, generator)

    def encode(self, image: Tensor, schedule: Sequence[Sequence[int]]) -> MultiScaleCode:
        """Encode pictures ``[B, 3, H, W]`` in [-1, 1] to the bits of every scale."""
        return self.quantize(self.encode_features(image), schedule)

    def decode_pixels(self, latent: Tensor, in_strips: bool = False) -> Tensor:
        """Decode the summed codes ``[B, d, H/s, W/s]`` to pictures ``[B, 3, H, W]``, float32 in [-1, 1].

        Args:
            latent: the codes.
            in_strips: decode strips of rows, one after the other: less memory, more time.
        """
        decoder = self.decoder.in_strips if in_strips else self.decoder
        return decoder(latent.to(self.dtype).contiguous()).float().clamp(-1.0, 1.0)

    def decode_bits(self, bits: Sequence[Tensor], schedule: Sequence[Sequence[int]]) -> Tensor:
        """Decode latent bits per scale, each ``[B, h, w, d]``, to pictures ``[B, 3, H, W]`` in [-1, 1].

        Args:
            bits: bool or 0/1 integers at latent resolution; fewer scales than the schedule decode a coarser
                picture of the same size.
            schedule: token grids; the last one sets the size.
        """
        return self.decode_pixels(latent_from_bits(bits, self.latent_grids(schedule)[-1]))

    def tokens_from_latent_bits(self, bits: Tensor) -> Tensor:
        """Latent bits ``[B, H_k, W_k, d]`` to the token bits ``[B, h_k, w_k, D]`` a transformer predicts."""
        return tokens_from_latent_bits(bits, self.config.patchify)

    def latent_bits_from_tokens(self, tokens: Tensor) -> Tensor:
        """Token bits ``[B, h_k, w_k, D]`` to latent bits ``[B, H_k, W_k, d]``."""
        return latent_bits_from_tokens(tokens, self.config.patchify)

    def load_official(self, state: Mapping[str, Tensor]) -> list[str]:
        """Load a published state dict strictly and return the keys that were dropped.

        Raises:
            ValueError: keys are missing or unexpected; both are listed by name.
        """
        converted, dropped = convert_official_state(state)
        own = self.state_dict().keys()
        missing = sorted(own - converted.keys())
        unexpected = sorted(converted.keys() - own)
        if missing or unexpected:
            raise ValueError(
                f"the checkpoint does not fit this tokenizer: missing {missing}, unexpected {unexpected}"
            )
        self.load_state_dict(converted, strict=True)
        return dropped


def official_key(key: str) -> str:
    """Spell a key of a published tokenizer the way our modules do.

    Both published spellings are accepted: ``conv1.weight`` and ``conv1.conv.weight``, norms likewise.
    """
    path, _, kind = key.rpartition(".")
    parent, _, leaf = path.rpartition(".")
    resampling = parent.endswith(("downsample", "upsample"))
    if leaf == "norm" or (leaf == "conv" and not resampling):
        return key
    return f"{path}.{'norm' if leaf.startswith('norm') else 'conv'}.{kind}"


def convert_official_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the keys of a published state dict and drop the constant mask buffers of its quantiser.

    Args:
        state: the state dict, or the file's outer mapping that holds it under ``vae``.

    Returns:
        The state dict under our names, and the dropped keys.
    """
    state = state.get("vae", state)
    dropped = sorted(key for key in state if key.endswith("lfq.mask"))
    converted = {
        official_key(key) if key.startswith(("encoder.", "decoder.")) else key: value
        for key, value in state.items()
        if key not in dropped
    }
    return converted, dropped
