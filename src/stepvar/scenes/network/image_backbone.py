"""Image backbone: a small convolutional network for the objects of a scene and their attributes.

Every cell of a map of stride 16 predicts whether an object is centred on it, and the shape, colour, texture
and size of the object that it lies on. Attributes are thus tied to objects, which a single vector for the
whole picture would have to learn with many more pictures.

Source: objects as peaks of a map as in Zhou et al., "Objects as Points", arXiv 1904.07850; attributes learned
on all cells near a centre as in Tian et al., "FCOS", arXiv 1904.01355.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.scenes import BACKGROUNDS, CANVAS, COLOURS, SHAPES, SIZES, TEXTURES

STRIDE = 16
"""Side in pixels of a cell of the map."""

MAXIMUM_PEAKS = 6
"""Most proposals of a picture: two more than scenes have objects, for pictures that show too many."""

OBJECT_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
}

_PATCH = 4
_CENTRES = 2
_PRIOR = -2.5
"""First logit of a centre: few cells have one."""


@dataclass(frozen=True)
class ObjectMaps:
    """Output maps of the backbone for B pictures.

    Attributes:
        features: [B, h, w, C], not negative.
        centre: [B, h, w] logits of how close an object's centre is.
        present: [B, h, w] logits of an object being centred within a cell's reach.
        attributes: Of the object a cell lies on, name -> logits [B, h, w, classes].
        background: [B, backgrounds] logits.
    """

    features: Tensor
    centre: Tensor
    present: Tensor
    attributes: dict[str, Tensor]
    background: Tensor


@dataclass(frozen=True)
class ObjectProposals:
    """The peaks of B maps, most likely first, and the picture as a whole.

    Attributes:
        features: [B, K, C] of the peaks' cells.
        objectness: [B, K] probability that the peak is an object.
        positions: [B, K, 3]: x and y of the cells' middle in -1..1, and the logarithm of the picture's side.
        attributes: Name -> probabilities [B, K, classes].
        context: [B, C] mean of all features.
        background: [B, backgrounds] probabilities.
    """

    features: Tensor
    objectness: Tensor
    positions: Tensor
    attributes: dict[str, Tensor]
    context: Tensor
    background: Tensor


class ImageBackbone(nn.Module):
    """Network from pictures to maps; 0.6 M parameters, 0.1 GFLOP multiply-adds for 192 pixels.

    Args:
        channels: Of the three stages, of strides 4, 8 and 16.
    """

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = channels
        # Patches are cut out and multiplied: three channels would leave a convolution's lanes empty.
        self.patches = nn.Linear(3 * _PATCH**2, first, bias=False)
        self.patch_norm = nn.BatchNorm2d(first)
        self.stages = nn.Sequential(
            _convolution(first, second, stride=2),
            Residual(second, 1),
            _convolution(second, third, stride=2),
            Residual(third, 2),
            _convolution(third, third),
        )
        outputs = _CENTRES + sum(len(values) for values in OBJECT_ATTRIBUTES.values())
        self.heads = nn.Linear(third + 1, outputs)
        self.background = nn.Linear(third, len(BACKGROUNDS))
        nn.init.constant_(self.heads.bias[:_CENTRES], _PRIOR)

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """Maps [B, C, h, w] of strides 4, 8 and 16, none negative.

        Args:
            pictures: [B, H, W, 3] in -1..1, H and W multiples of 16.
        """
        batch, height, width, _ = pictures.shape
        rows, columns = height // _PATCH, width // _PATCH
        patches = pictures.view(batch, rows, _PATCH, columns, _PATCH, 3).transpose(2, 3)
        hidden = self.patches(patches.reshape(batch, rows, columns, 3 * _PATCH**2)).permute(0, 3, 1, 2)
        first = F.relu(self.patch_norm(hidden), inplace=True)
        second = self.stages[:2](first)
        return [first, second, self.stages[2:](second)]

    def forward(self, pictures: Tensor) -> ObjectMaps:
        """Maps of pictures [B, H, W, 3] in -1..1, H and W multiples of 16."""
        features = self.layers(pictures)[-1].permute(0, 2, 3, 1)
        # "large" is relative to the canvas, which lies outside of a cell's receptive field.
        side = features.new_full((*features.shape[:3], 1), log_side(pictures.shape[2]))
        split = [1, 1, *(len(values) for values in OBJECT_ATTRIBUTES.values())]
        centre, present, *attributes = self.heads(torch.cat((features, side), dim=-1)).split(split, dim=-1)
        return ObjectMaps(
            features,
            centre.squeeze(-1),
            present.squeeze(-1),
            dict(zip(OBJECT_ATTRIBUTES, attributes, strict=True)),
            self.background(features.mean(dim=(1, 2))),
        )


class Residual(nn.Module):
    """relu(x + convolutions(x)); the last normalisation starts at zero, and so does the sum."""

    def __init__(self, channels: int, convolutions: int) -> None:
        super().__init__()
        parts = [_convolution(channels, channels) for _ in range(convolutions - 1)]
        norm = nn.BatchNorm2d(channels)
        self.branch = nn.Sequential(*parts, nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm)
        nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return F.relu(x + self.branch(x))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def log_side(pixels: int) -> float:
    """Side of a picture as an input of the network."""
    return math.log(pixels / CANVAS)


def find_objects(maps: ObjectMaps) -> ObjectProposals:
    """Takes the highest local maxima of the map of centres."""
    batch, height, width, _ = maps.features.shape
    heights = maps.centre[:, None]
    is_peak = F.max_pool2d(heights, 3, stride=1, padding=1) == heights
    peaks = heights.masked_fill(~is_peak, -math.inf).flatten(1)
    values, cells = peaks.topk(min(MAXIMUM_PEAKS, peaks.shape[1]), dim=1)

    def at_peaks(grid: Tensor) -> Tensor:
        flat = grid.reshape(batch, height * width, -1)
        return flat.gather(1, cells[..., None].expand(-1, -1, flat.shape[-1]))

    across = ((cells % width) + 0.5) * (2.0 / width) - 1.0
    down = ((cells // width) + 0.5) * (2.0 / height) - 1.0
    side = torch.full_like(across, log_side(width * STRIDE))
    objectness = at_peaks(maps.present).squeeze(-1).sigmoid()
    return ObjectProposals(
        at_peaks(maps.features),
        objectness.masked_fill(values.isinf(), 0.0),
        torch.stack((across, down, side), dim=-1),
        {name: at_peaks(logits).softmax(-1) for name, logits in maps.attributes.items()},
        maps.features.mean(dim=(1, 2)),
        maps.background.softmax(-1),
    )


def normalise_pixels(pictures: Tensor) -> Tensor:
    """Bytes [B, H, W, 3] -> float32 in -1..1.

    Raises:
        ValueError: When they are no 8-bit pictures, or their sides are no multiples of 16.
    """
    if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[-1] != 3:
        raise ValueError(
            f"Pictures must be uint8 [N, height, width, 3]; got {pictures.dtype} of {list(pictures.shape)}."
        )
    if pictures.shape[1] % STRIDE or pictures.shape[2] % STRIDE or 0 in pictures.shape[1:3]:
        raise ValueError(
            f"Sides must be multiples of {STRIDE} pixels, such as 192 or 256; "
            f"got {pictures.shape[2]} x {pictures.shape[1]}."
        )
    return pictures.float() / 127.5 - 1.0
