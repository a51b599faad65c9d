"""Crops of rendered videos, on which the video VAE trains."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from stepvar.scenes.moving.grammar import sample
from stepvar.scenes.moving.scenes import CANVAS, FRAMES, render_video
from stepvar.scenes.moving.spec import MovingScene
from stepvar.scenes.spec import Scene
from stepvar.training.common.crops import CropStream, Pixels, channels_first

_CROPS_PER_SCENE = 3


class VideoCrops(CropStream):
    """Batches of crops of videos, uint8 [batch, 3, frames, side, side]; arguments as for `CropStream`.

    Args:
        frames: Of every video; 1 is a picture of any time.
    """

    def __init__(self, batch: int, side: int, seed: int, frames: int = FRAMES) -> None:
        super().__init__(batch, side, seed, CANVAS, _CROPS_PER_SCENE)
        self.frames = frames

    def render(self, rng: np.random.Generator) -> tuple[Pixels, Scene]:
        _, scene = sample(rng)
        time = float(rng.random())
        if self.frames == 1:
            scene = MovingScene(scene.at(time), scene.at(time))
        video = render_video(scene, frames=self.frames, seed=int(rng.integers(2**31)))
        return video, scene.at(time)


def fixed_videos(count: int, seed: int = 0) -> Tensor:
    """The same whole scenes at every call, uint8 [count, 3, F, side, side]."""
    rng = np.random.default_rng(seed)
    scenes = [sample(rng, split="any")[1] for _ in range(count)]
    return channels_first(np.stack([render_video(scene, seed=int(rng.integers(2**31))) for scene in scenes]))
