"""Batches of rendered moving scenes for training the video tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stepvar.scenes.moving.grammar import sample
from stepvar.scenes.moving.scenes import CANVAS, FRAMES, render_video
from stepvar.scenes.moving.spec import MovingScene
from stepvar.training.pictures.crops import ALIGNMENT, CROPS_AT_OBJECTS

_CROPS_PER_SCENE = 3


class VideoCrops(IterableDataset):
    """An endless stream of batches of crops, each uint8 [batch, 3, F, side, side].

    Args:
        batch: Crops per batch.
        side: Pixels per side, a multiple of eight up to the canvas.
        seed: Start of the random stream; every worker gets its own.
        frames: Of every video; 1 is a picture of any time.
    """

    def __init__(self, batch: int, side: int, seed: int, frames: int = FRAMES) -> None:
        super().__init__()
        self.batch, self.side, self.seed, self.frames = batch, side, seed, frames

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        crops_per_scene = 1 if self.side == CANVAS else _CROPS_PER_SCENE
        while True:
            crops: list[NDArray[np.uint8]] = []
            while len(crops) < self.batch:
                _, scene = sample(rng)
                if self.frames == 1:
                    now = scene.at(float(rng.random()))
                    scene = MovingScene(now, now)
                video = render_video(scene, frames=self.frames, seed=int(rng.integers(2**31)))
                crops += [self._crop(video, scene, rng) for _ in range(crops_per_scene)]
            yield to_channels(np.stack(crops[: self.batch]))

    def _crop(
        self, video: NDArray[np.uint8], scene: MovingScene, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        top, left = rng.integers(0, CANVAS - self.side + 1, 2)
        if rng.random() < CROPS_AT_OBJECTS:
            objects = scene.at(rng.random()).objects
            item = objects[rng.integers(len(objects))]
            jitter = rng.uniform(-0.5, 0.5, 2) * self.side
            top, left = item.y + jitter[0] - self.side / 2, item.x + jitter[1] - self.side / 2
        top, left = (
            int(np.clip(start, 0, CANVAS - self.side)) // ALIGNMENT * ALIGNMENT for start in (top, left)
        )
        return video[:, top : top + self.side, left : left + self.side]


def video_batches(batch: int, side: int, seed: int, workers: int, frames: int = FRAMES) -> Iterator[Tensor]:
    """Batches rendered in background processes, uint8 [batch, 3, F, side, side]."""
    return iter(DataLoader(VideoCrops(batch, side, seed, frames), batch_size=None, num_workers=workers))


def fixed_videos(count: int, seed: int = 0) -> Tensor:
    """The same whole scenes for every call, uint8 [count, 3, F, side, side]."""
    rng = np.random.default_rng(seed)
    scenes = [sample(rng, split="any")[1] for _ in range(count)]
    return to_channels(np.stack([render_video(scene, seed=int(rng.integers(2**31))) for scene in scenes]))


def to_channels(videos: NDArray[np.uint8]) -> Tensor:
    """Rendered videos [B, F, H, W, 3] as [B, 3, F, H, W]."""
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3).contiguous()
