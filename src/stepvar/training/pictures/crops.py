"""Batches of rendered scenes for training the embedded tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stepvar.scenes.render import render
from stepvar.scenes.sampling import sample_scene
from stepvar.scenes.spec import Scene, Split

ALIGNMENT = 8
_CROPS_PER_SCENE = 2
CROPS_AT_OBJECTS = 0.75

Bytes = NDArray[np.uint8]


class SceneCrops(IterableDataset):
    """An endless stream of batches of crops, each uint8 ``[batch, 3, side, side]``.

    Crops start at multiples of eight pixels, where textures start too, and most of them show an object.

    Args:
        batch: crops per batch.
        side: pixels per side, a multiple of eight up to the canvas.
        seed: start of the random stream; every worker gets its own.
        canvas: side in pixels of the whole scenes.

    Raises:
        ValueError: the side is not such a multiple.
    """

    def __init__(self, batch: int, side: int, seed: int, canvas: int) -> None:
        super().__init__()
        if side % ALIGNMENT or not 0 < side <= canvas:
            raise ValueError(f"side must be a multiple of {ALIGNMENT} up to {canvas}, got {side}")
        self.batch, self.side, self.seed, self.canvas = batch, side, seed, canvas

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        crops_per_scene = 1 if self.side == self.canvas else _CROPS_PER_SCENE
        while True:
            crops: list[Bytes] = []
            while len(crops) < self.batch:
                scene = sample_scene(rng, canvas=self.canvas)
                picture = render(scene, self.canvas, seed=int(rng.integers(2**31)))
                crops.extend(self._crop(picture, scene, rng) for _ in range(crops_per_scene))
            yield torch.from_numpy(np.stack(crops[: self.batch])).permute(0, 3, 1, 2).contiguous()

    def _crop(self, picture: Bytes, scene: Scene, rng: np.random.Generator) -> Bytes:
        top, left = rng.integers(0, self.canvas - self.side + 1, 2)
        if rng.random() < CROPS_AT_OBJECTS:
            item = scene.objects[rng.integers(len(scene.objects))]
            jitter = rng.uniform(-0.5, 0.5, 2) * self.side
            top, left = item.y + jitter[0] - self.side / 2, item.x + jitter[1] - self.side / 2
        top, left = (
            int(np.clip(start, 0, self.canvas - self.side)) // ALIGNMENT * ALIGNMENT for start in (top, left)
        )
        return picture[top : top + self.side, left : left + self.side]


def crop_batches(batch: int, side: int, seed: int, canvas: int, workers: int = 1) -> Iterator[Tensor]:
    """Iterate over batches rendered in background processes, uint8 ``[batch, 3, side, side]``."""
    return iter(DataLoader(SceneCrops(batch, side, seed, canvas), batch_size=None, num_workers=workers))


def fixed_pictures(count: int, canvas: int, split: Split = "any", seed: int = 0) -> Tensor:
    """Render the same ``count`` whole scenes for every call, uint8 ``[count, 3, canvas, canvas]``."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, canvas=canvas, split=split) for _ in range(count)]
    pictures = [render(scene, canvas, seed=int(rng.integers(2**31))) for scene in scenes]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def to_signed(pictures: Tensor) -> Tensor:
    """Map bytes 0..255 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1.0


def to_bytes(pictures: Tensor) -> Tensor:
    """Map values in [-1, 1] to bytes, rounding to the nearest."""
    return ((pictures.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
