"""Crops of rendered pictures, on which the picture VAE trains."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from stepvar.scenes.render import render
from stepvar.scenes.sampling import sample_scene
from stepvar.scenes.spec import Scene, Split
from stepvar.training.common.crops import CropStream, Pixels, channels_first

_CROPS_PER_SCENE = 2


class PictureCrops(CropStream):
    """Batches of crops of pictures, uint8 [batch, 3, side, side]; arguments as for `CropStream`."""

    def __init__(self, batch: int, side: int, seed: int, canvas: int) -> None:
        super().__init__(batch, side, seed, canvas, _CROPS_PER_SCENE)

    def render(self, rng: np.random.Generator) -> tuple[Pixels, Scene]:
        scene = sample_scene(rng, canvas=self.canvas)
        return render(scene, self.canvas, seed=int(rng.integers(2**31))), scene


def fixed_pictures(count: int, canvas: int, split: Split = "any", seed: int = 0) -> Tensor:
    """The same whole scenes at every call, uint8 [count, 3, canvas, canvas]."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, canvas=canvas, split=split) for _ in range(count)]
    return channels_first(
        np.stack([render(scene, canvas, seed=int(rng.integers(2**31))) for scene in scenes])
    )
