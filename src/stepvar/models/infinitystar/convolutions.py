"""Causal 3-D convolutions, and the blocks of the video tokenizer that are built from them.

Modules hold no state: what a convolution needs of the chunk before is in a `Stream` that the caller
owns. So a video that is decoded chunk by chunk equals one that is decoded at once.

Module names equal the keys of the published checkpoint. Facts of the architecture:
FoundationVision/InfinityStar (MIT), infinity/models/videovae/models/wan_bsq_vae.py.

Shapes: B videos, C channels, T frames, H x W positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from stepvar.models.common.base import BlockList

KERNEL = 3


@dataclass
class Stream:
    """The last frames that each convolution saw, for the next chunk of the same video.

    Attributes:
        frames: Convolution -> its last two input frames.
        started: Whether a chunk has gone through: the first one is padded, and may be treated apart.
    """

    frames: dict[nn.Module, Tensor] = field(default_factory=dict)
    started: bool = False


class CausalConvolution(nn.Module):
    """A convolution that looks two frames back; the first frame stands in for those before it.

    Args:
        kernel: Side in all three directions, 3 or 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = KERNEL) -> None:
        super().__init__()
        side = kernel // 2
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=(0, side, side))

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """x [B, C, T, H, W] -> [B, C', T, H, W]."""
        back = self.conv.kernel_size[0] - 1
        if not back:
            return self.conv(x)
        earlier = stream.frames.get(self)
        if earlier is None:
            earlier = x[:, :, :1].expand(-1, -1, back, -1, -1)
        x = torch.cat([earlier, x], dim=2)
        # A copy: a view would keep the whole chunk in memory.
        stream.frames[self] = x[:, :, -back:].clone()
        return self.conv(x)


class ChannelNorm(nn.Module):
    """x / |x| x sqrt(C) x gamma over the channels of every position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # In the format of x: under mixed precision, a float32 factor makes all that follows float32.
        return functional.normalize(x, dim=1) * (x.shape[1] ** 0.5 * self.gamma).to(x.dtype)


class LatentNorm(nn.Module):
    """A channel norm modulated, position by position, by the latent that is being decoded."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = ChannelNorm(channels)
        self.conv_y = CausalConvolution(latent_channels, channels, kernel=1)
        self.conv_b = CausalConvolution(latent_channels, channels, kernel=1)

    def forward(self, x: Tensor, latent: Tensor, stream: Stream) -> Tensor:
        # 1 x 1 convolutions commute with repeating positions: made on the small latent, they are cheaper.
        scale, shift = self.conv_y(latent, stream), self.conv_b(latent, stream)
        return self.norm_layer(x) * repeat_to(scale, x) + repeat_to(shift, x)


def repeat_to(latent: Tensor, x: Tensor) -> Tensor:
    """Resizes to the frames and sides of x by repeating; of an odd number of frames the first stays alone."""
    size = x.shape[-3:]
    if x.shape[2] > 1 and x.shape[2] % 2:
        first = functional.interpolate(latent[:, :, :1], size=(1, *size[1:]), mode="nearest")
        rest = functional.interpolate(latent[:, :, 1:], size=(size[0] - 1, *size[1:]), mode="nearest")
        return torch.cat([first, rest], dim=2)
    return functional.interpolate(latent, size=size, mode="nearest")


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice; the norms see the latent where `latent_channels` is given."""

    def __init__(self, channels: int, latent_channels: int | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = (
            ChannelNorm(channels) if latent_channels is None else LatentNorm(channels, latent_channels)
            for _ in range(2)
        )
        self.conv1 = CausalConvolution(channels, channels)
        self.conv2 = CausalConvolution(channels, channels)

    def forward(self, x: Tensor, stream: Stream, latent: Tensor | None = None) -> Tensor:
        context = () if latent is None else (latent, stream)
        h = self.conv1(functional.silu(self.norm1(x, *context)), stream)
        return x + self.conv2(functional.silu(self.norm2(h, *context)), stream)


class ResidualStack(nn.Module):
    """Residual blocks under the name that the published keys have for them."""

    def __init__(self, channels: int, blocks: int, latent_channels: int | None = None) -> None:
        super().__init__()
        self.downsamplers: BlockList[Downsample] | None = None
        self.upsamplers: BlockList[Upsample] | None = None
        self.resnets = nn.ModuleList(ResidualBlock(channels, latent_channels) for _ in range(blocks))

    def forward(self, x: Tensor, stream: Stream, latent: Tensor | None = None) -> Tensor:
        for block in self.resnets:
            x = block(x, stream, latent)
        return x


class _Resampling(nn.Module):
    """A norm and a convolution, under the names of the published keys."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(in_channels)
        self.conv = CausalConvolution(in_channels, out_channels)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return self.conv(functional.silu(self.norm(x)), stream)


class Downsample(nn.Module):
    """Halves the sides, and the frames after the first where `halves_time`; squares go into channels."""

    def __init__(self, in_channels: int, out_channels: int, halves_time: bool) -> None:
        super().__init__()
        self.conv = _Resampling(in_channels, out_channels // 4)
        self.pace = 2 if halves_time else 1

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        learned = self._fold(self.conv(x, stream))
        shortcut = self._fold(x)
        groups = shortcut.unflatten(1, (-1, learned.shape[1]))
        return learned + groups.mean(dim=1)

    def _fold(self, x: Tensor) -> Tensor:
        """[B, C, T, 2H, 2W] -> [B, 4C, T', H, W]; channel = (row parity, column parity, c)."""
        batch, channels, frames, height, width = x.shape
        x = x.reshape(batch, channels, frames, height // 2, 2, width // 2, 2)
        x = x.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3)
        if self.pace == 1 or frames == 1:
            return x
        alone = frames % 2
        averaged = x[:, :, alone:].unflatten(2, (-1, self.pace)).mean(dim=3)
        return torch.cat([x[:, :, :alone], averaged], dim=2)


class Upsample(nn.Module):
    """Doubles the sides, and the frames where `doubles_time`; channels become squares and frames."""

    def __init__(self, in_channels: int, out_channels: int, doubles_time: bool) -> None:
        super().__init__()
        self.pace = 2 if doubles_time else 1
        self.conv = _Resampling(in_channels, out_channels * 4 * self.pace)

    def forward(self, x: Tensor, stream: Stream, first_alone: bool) -> Tensor:
        """x [B, C, T, H, W] -> [B, C', T', 2H, 2W].

        Args:
            first_alone: Whether the chunk begins with the video's first frame, which stands for one frame.
        """
        learned = self.conv(x, stream)
        repeated = x.repeat(1, learned.shape[1] // x.shape[1], 1, 1, 1)
        unfolded = self._unfold(learned + repeated)
        if self.pace == 1 or not first_alone:
            return unfolded
        first = unfolded[:, :, : self.pace].mean(dim=2, keepdim=True)
        return torch.cat([first, unfolded[:, :, self.pace :]], dim=2)

    def _unfold(self, x: Tensor) -> Tensor:
        """[B, pace 4 C, T, H, W] -> [B, C, pace T, 2H, 2W]; channel = (frame, row, column, c)."""
        batch, _, frames, height, width = x.shape
        x = x.reshape(batch, self.pace, 2, 2, -1, frames, height, width)
        x = x.permute(0, 4, 5, 1, 6, 2, 7, 3)
        return x.reshape(batch, -1, frames * self.pace, 2 * height, 2 * width)
