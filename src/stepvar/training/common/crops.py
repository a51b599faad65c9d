"""Streams of crops of rendered scenes, on which VAEs train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stepvar.scenes.spec import Scene

PIXELS_PER_TOKEN = 8
"""Side in pixels that a token of the last scale covers, in pictures and in videos."""

_CROPS_AT_OBJECTS = 0.75

Pixels = NDArray[np.uint8]
Item = TypeVar("Item")


class CropStream(IterableDataset[Tensor], ABC):
    """An endless stream of batches of crops, each uint8 [batch, 3, ..., side, side].

    Crops start at multiples of eight pixels, where textures start too, and most of them show an object.

    Args:
        batch: Crops in a batch.
        side: Pixels per side, a multiple of eight up to the canvas.
        seed: Start of the random stream; every worker process gets its own.
        canvas: Side in pixels of the whole scenes.
        crops_per_scene: Crops taken from a scene where they are smaller than it.

    Raises:
        ValueError: When the side is no such multiple.
    """

    def __init__(self, batch: int, side: int, seed: int, canvas: int, crops_per_scene: int) -> None:
        super().__init__()
        if side % PIXELS_PER_TOKEN or not 0 < side <= canvas:
            raise ValueError(f"side is {side}; use a multiple of {PIXELS_PER_TOKEN} up to {canvas}.")
        self.batch, self.side, self.seed, self.canvas = batch, side, seed, canvas
        self.crops_per_scene = 1 if side == canvas else crops_per_scene

    @abstractmethod
    def render(self, rng: np.random.Generator) -> tuple[Pixels, Scene]:
        """A random scene: its pixels [..., canvas, canvas, 3], and the objects that crops should show."""

    def __iter__(self) -> Iterator[Tensor]:
        rng = worker_generator(self.seed)
        while True:
            crops: list[Pixels] = []
            while len(crops) < self.batch:
                pixels, scene = self.render(rng)
                crops += [self._crop(pixels, scene, rng) for _ in range(self.crops_per_scene)]
            yield channels_first(np.stack(crops[: self.batch]))

    def _crop(self, pixels: Pixels, scene: Scene, rng: np.random.Generator) -> Pixels:
        top, left = (float(start) for start in rng.integers(0, self.canvas - self.side + 1, 2))
        if rng.random() < _CROPS_AT_OBJECTS:
            item = scene.objects[rng.integers(len(scene.objects))]
            down, across = rng.uniform(-0.5, 0.5, 2) * self.side
            top, left = item.y + down - self.side / 2, item.x + across - self.side / 2
        rows, columns = (self._aligned(start) for start in (top, left))
        return pixels[..., rows, columns, :]

    def _aligned(self, start: float) -> slice:
        inside = int(np.clip(start, 0, self.canvas - self.side)) // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
        return slice(inside, inside + self.side)


def worker_generator(seed: int) -> np.random.Generator:
    """Random numbers of a data loader's process; every one has its own."""
    worker = get_worker_info()
    return np.random.default_rng((seed, worker.id if worker else 0))


def stream(batches: IterableDataset[Item], workers: int = 1) -> Iterator[Item]:
    """Iterates over batches made in background processes; without workers, in this process."""
    return iter(DataLoader(batches, batch_size=None, num_workers=workers))


def channels_first(pixels: Pixels) -> Tensor:
    """Rendered pictures or videos [B, ..., H, W, 3] as [B, 3, ..., H, W]."""
    return torch.from_numpy(pixels).movedim(-1, 1).contiguous()


def to_signed(pixels: Tensor) -> Tensor:
    """Bytes 0..255 as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def to_bytes(pixels: Tensor) -> Tensor:
    """Values in [-1, 1] as bytes, rounded to the nearest."""
    return ((pixels.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
