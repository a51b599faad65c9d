"""Video tokenizer of InfinityStar: a causal 3-D autoencoder, chunk by chunk over time.

Module names equal the keys of the published checkpoint, but for its scale. Facts of the architecture:
FoundationVision/InfinityStar (MIT), infinity/models/videovae/models/wan_bsq_vae.py and
load_vae_bsq_wan_absorb_patchify.py.

Shapes, as published: B videos of F = 1 + 4 (T - 1) frames of 16 H x 16 W pixels in -1..1; latents of T
frames, H x W cells and 64 channels, which are 2 x 2 positions of 16 channels at twice the sides. Where a cell
is one position (`patch` 1), it is 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.configuration_utils import register_to_config

# diffusers looks up the base class of a saved component on the module that the component is from.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import Tensor, nn

from stepvar.models.common.autoencoder import Autoencoder
from stepvar.models.common.base import BlockList
from stepvar.models.infinitystar.convolutions import (
    CausalConvolution,
    ChannelNorm,
    Downsample,
    LatentNorm,
    ResidualStack,
    Stream,
    Upsample,
)
from stepvar.models.infinitystar.tiling import USUAL_TILE, decode_tiles

Probe = Callable[[str, Tensor], None]
"""Called with (name, tensor) at the landmarks of every chunk."""

TIME_HALVINGS = 2
"""Levels that halve the frames: the two finest."""

FRAMES_PER_LATENT = 4
ENCODER_CHUNK = 8
DECODER_CHUNK = 2


class Encoder(nn.Module):
    """Frames [B, 3, F, 16 H, 16 W] -> moments [B, 2 d, T, 2 H, 2 W].

    Args:
        channels: Of the first convolution, then after each level.
        latent_channels: d.
        blocks: Residual blocks a level.
        pixel_block: Side of the squares of pixels that go into channels first.
    """

    def __init__(
        self, channels: Sequence[int], latent_channels: int, blocks: int, pixel_block: int = 1
    ) -> None:
        super().__init__()
        self.pixel_block = pixel_block
        self.conv_in = CausalConvolution(3 * pixel_block**2, channels[0])
        self.down_blocks: BlockList[ResidualStack] = BlockList()
        levels = len(channels) - 1
        for level in range(levels):
            stack = ResidualStack(channels[level], blocks)
            if level < levels - 1:
                halves_time = level < TIME_HALVINGS
                down = Downsample(channels[level], channels[level + 1], halves_time)
                stack.downsamplers = BlockList([down])
            self.down_blocks.append(stack)
        self.mid_block = ResidualStack(channels[-1], 2)
        self.norm_out = ChannelNorm(channels[-1])
        self.conv_out = CausalConvolution(channels[-1], 2 * latent_channels)

    def forward(self, x: Tensor, stream: Stream, probe: Probe | None = None) -> Tensor:
        show = probe or _ignore
        x = self.conv_in(_fold(x, self.pixel_block), stream)
        show("conv_in", x)
        for level, stack in enumerate(self.down_blocks):
            x = stack(x, stream)
            if stack.downsamplers is not None:
                x = stack.downsamplers[0](x, stream)
            show(f"down{level}", x)
        x = self.mid_block(x, stream)
        show("mid", x)
        x = self.conv_out(functional.silu(self.norm_out(x)), stream)
        show("conv_out", x)
        return x


class Decoder(nn.Module):
    """Latent positions [B, d, T, 2 H, 2 W] -> frames [B, 3, F, 16 H, 16 W].

    Args:
        Others: As for `Encoder`; channels fine to coarse.
    """

    def __init__(
        self, channels: Sequence[int], latent_channels: int, blocks: int, pixel_block: int = 1
    ) -> None:
        super().__init__()
        self.pixel_block = pixel_block
        coarse_first = list(reversed(channels))
        self.conv_in = CausalConvolution(latent_channels, coarse_first[0])
        self.mid_block = ResidualStack(coarse_first[0], 2, latent_channels)
        self.up_blocks: BlockList[ResidualStack] = BlockList()
        levels = len(channels) - 1
        for level in range(levels):
            stack = ResidualStack(coarse_first[level], blocks, latent_channels)
            if level:
                doubles_time = level >= levels - TIME_HALVINGS
                up = Upsample(coarse_first[level], coarse_first[level + 1], doubles_time)
                stack.upsamplers = BlockList([up])
            self.up_blocks.append(stack)
        self.norm_out = LatentNorm(channels[0], latent_channels)
        self.conv_out = CausalConvolution(channels[0], 3 * pixel_block**2)

    def forward(self, latent: Tensor, stream: Stream, probe: Probe | None = None) -> Tensor:
        show = probe or _ignore
        first, stream.started = not stream.started, True
        x = self.conv_in(latent, stream)
        show("conv_in", x)
        x = self.mid_block(x, stream, latent)
        show("mid", x)
        for level, stack in enumerate(self.up_blocks):
            x = stack(x, stream, latent)
            if stack.upsamplers is not None:
                x = stack.upsamplers[0](x, stream, first_alone=first)
            show(f"up{level}", x)
        x = self.norm_out(x, latent, stream)
        show("norm_out", x)
        return _unfold(self.conv_out(functional.silu(x), stream), self.pixel_block)


class LatentScale(nn.Module):
    """One learned number between the autoencoder's latents and those that are quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, latent: Tensor, invert: bool = False) -> Tensor:
        return latent / self.weight if invert else latent * self.weight


class InfinityStarVAEConfig(Mapping[str, Any]):
    """Arguments of `InfinityStarVAE`, by name and as attributes."""

    channels: Sequence[int]
    latent_channels: int
    blocks: int
    patch: int
    pixel_block: int
    with_encoder: bool


class InfinityStarVAE(Autoencoder[InfinityStarVAEConfig]):
    """Videos to latents and back; pictures are videos of one frame.

    Args:
        channels: Channels of the levels, fine to coarse; entry 0 belongs to the first convolution.
        latent_channels: Of a position; a latent cell has four times as many.
        blocks: Residual blocks of an encoder level; a decoder level has one more.
        patch: Side of the square of positions that one latent cell stands for.
        pixel_block: Side of the squares of pixels that the first convolution sees as one position; a small
            model saves all work at full resolution by 2, and one level.
        with_encoder: False for weights that can only decode.

    Raises:
        ValueError: When there are too few levels to shrink the frames.
    """

    # Bits are signs of what the encoder says, so its numbers stay exact whatever the decoder runs in.
    _keep_in_fp32_modules: list[str] | None = ["encoder", "proj_down", "latent_scale"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (96, 192, 384, 384, 384),
        latent_channels: int = 16,
        blocks: int = 2,
        patch: int = 2,
        pixel_block: int = 1,
        with_encoder: bool = True,
    ) -> None:
        super().__init__()
        if len(channels) < 2 + TIME_HALVINGS:
            raise ValueError(f"channels has {len(channels)} entries; it needs {2 + TIME_HALVINGS} or more.")
        cell = latent_channels * patch**2
        if with_encoder:
            self.encoder = Encoder(channels, latent_channels, blocks, pixel_block)
            self.proj_down = nn.Linear(cell, cell)
        self.decoder = Decoder(channels, latent_channels, blocks + 1, pixel_block)
        self.proj_up = nn.Linear(cell, cell)
        self.latent_scale = LatentScale()

    @property
    def cell_channels(self) -> int:
        """C: channels of a latent cell, and the most bits a token can hold."""
        return self.config.latent_channels * self.config.patch**2

    @property
    def stride(self) -> int:
        """Pixels per latent position in each direction, under the name that all visual tokenizers have."""
        return self.pixels_per_cell

    @property
    def pixels_per_cell(self) -> int:
        config = self.config
        return config.pixel_block * 2 ** (len(config.channels) - 2) * config.patch

    def encode(
        self,
        frames: Tensor,
        noise: Tensor | None = None,
        probe: Probe | None = None,
    ) -> Tensor:
        """Frames [B, 3, F, 16 H, 16 W] in -1..1 -> latents [B, C, T, H, W], float32.

        Args:
            noise: Standard normal numbers of the latents' shape; None takes the mean of the posterior.
            probe: Sees what leaves every level, chunk by chunk, and "moments".

        Raises:
            ValueError: When the frames or the sides do not divide, or these weights have no encoder.
        """
        if not self.config.with_encoder:
            raise ValueError("This video tokenizer has no encoder: pictures and videos cannot be given.")
        count, sides = frames.shape[2], frames.shape[-2:]
        if (count - 1) % FRAMES_PER_LATENT or any(side % self.pixels_per_cell for side in sides):
            raise ValueError(
                f"A video of {count} frames of {sides[1]}x{sides[0]} pixels cannot be encoded: it needs "
                f"1 + {FRAMES_PER_LATENT} n frames, and sides that are multiples of {self.pixels_per_cell}."
            )
        stream, parts = Stream(), []
        first = ENCODER_CHUNK + count % ENCODER_CHUNK if count >= ENCODER_CHUNK else count
        for number, chunk in enumerate(frames.split([first, *_rest(count - first, ENCODER_CHUNK)], dim=2)):
            parts.append(self.encoder(chunk.float(), stream, _numbered(probe, number)))
        moments = _fold(torch.cat(parts, dim=2), self.config.patch)
        (probe or _ignore)("moments", moments)
        mean, log_variance = moments.chunk(2, dim=1)
        if noise is not None:
            mean = mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise.to(mean)
        return self.latent_scale(_on_channels(self.proj_down, mean))

    def decode_pixels(
        self,
        latent: Tensor,
        in_strips: bool = False,
        chunk: int = DECODER_CHUNK,
        probe: Probe | None = None,
    ) -> Tensor:
        """Latents [B, C, T, H, W] -> frames [B, 3, F, 16 H, 16 W], float32, near -1..1, not clamped.

        Args:
            latent: The codes.
            in_strips: Decode tiles of the frames, one after the other: less memory, more time.
            chunk, probe: As for `decode_stream`; a probe sees whole frames only.
        """
        if in_strips:
            chunks = self.decode_tiled(latent, USUAL_TILE, USUAL_TILE // 4, chunk)
        else:
            chunks = self.decode_stream(latent, chunk, probe)
        return torch.cat(list(chunks), dim=2)

    def decode_stream(
        self, latent: Tensor, chunk: int = DECODER_CHUNK, probe: Probe | None = None
    ) -> Iterator[Tensor]:
        """Decodes a few latent frames at a time, and equals decoding all at once.

        Memory is bounded by the chunk whatever the video's length: every convolution keeps two frames.

        Args:
            latent: [B, C, T, H, W].
            chunk: Latent frames at a time, 1 or more; the first chunk has one or two more, as officially.
            probe: Sees what leaves every level, chunk by chunk.

        Yields:
            Frames [B, 3, n, 16 H, 16 W], float32.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be 1 or more latent frames.")
        count = latent.shape[2]
        first = min(count, chunk + 2 - count % 2)
        stream = Stream()
        for number, part in enumerate(latent.split([first, *_rest(count - first, chunk)], dim=2)):
            yield self.decoder(self._positions(part), stream, _numbered(probe, number)).float()

    def decode_tiled(
        self, latent: Tensor, tile: int, overlap: int, chunk: int = DECODER_CHUNK
    ) -> Iterator[Tensor]:
        """As `decode_stream`, a tile of the picture at a time: for devices short of memory.

        Args:
            tile: Side of a tile, in latent cells, its overlap included.
            overlap: Cells that neighbouring tiles share, and over which they are blended.

        Yields:
            Frames [B, 3, n, 16 H, 16 W], float32.
        """
        yield from decode_tiles(
            lambda part: self.decode_stream(part, chunk), latent, tile, overlap, self.pixels_per_cell
        )

    def _positions(self, latent: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] -> what the decoder reads, [B, C / 4, T, 2 H, 2 W]."""
        scaled = self.latent_scale(latent.float(), invert=True)
        return _unfold(_on_channels(self.proj_up, scaled.to(self.dtype)), self.config.patch)


def _on_channels(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer on the channels of [B, C, T, H, W]."""
    return layer(x.movedim(1, -1)).movedim(-1, 1)


def _fold(x: Tensor, patch: int) -> Tensor:
    """[B, C, T, p H, p W] -> [B, p^2 C, T, H, W], frame by frame."""
    if patch == 1:
        return x
    return functional.pixel_unshuffle(x.transpose(1, 2), patch).transpose(1, 2)


def _unfold(x: Tensor, patch: int) -> Tensor:
    """[B, p^2 C, T, H, W] -> [B, C, T, p H, p W], frame by frame."""
    if patch == 1:
        return x
    return functional.pixel_shuffle(x.transpose(1, 2), patch).transpose(1, 2)


def _rest(count: int, chunk: int) -> list[int]:
    """Sizes of the chunks after the first one."""
    return [min(chunk, count - start) for start in range(0, count, chunk)]


def _numbered(probe: Probe | None, number: int) -> Probe | None:
    return None if probe is None else lambda name, tensor: probe(f"{name}.chunk{number}", tensor)


def _ignore(name: str, tensor: Tensor) -> None:
    """A probe that does nothing."""
