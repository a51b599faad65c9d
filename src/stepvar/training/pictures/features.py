"""Encoded training pictures: rendering, encoding and reading of shards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepvar.models.infinity.vae import InfinityVAE
from stepvar.scenes import Group, SceneSpec, render, sample, write_prompt
from stepvar.training.common.features import (
    SHARD,
    FeatureDataset,
    RenderedShard,
    encode_shards,
    object_tokens,
)

_STREAM = 1
"""Separates the random numbers of training pictures from others of the same seed."""


class PictureFeatures(FeatureDataset[SceneSpec]):
    """Encoded pictures."""

    @staticmethod
    def spec_from_json(entry: dict[str, Any]) -> SceneSpec:
        groups = tuple(Group(**group) for group in entry["groups"])
        return SceneSpec(groups, entry["relation"], entry["background"])

    def prompt(self, rng: np.random.Generator, index: int) -> str:
        return write_prompt(rng, self.specs[index])


def encode_pictures(
    vae: InfinityVAE, folder: Path, shards: int, canvas: int, batch: int = 16
) -> Iterator[int]:
    """Encodes the shards of random training pictures that a folder lacks.

    Args:
        vae: On the device to run on.
        folder: Where the shards go.
        shards: Number of shards in the finished folder.
        canvas: Side of the pictures in pixels.
        batch: Pictures encoded at once.

    Yields:
        The number of shards done so far.
    """
    render_one = partial(render_shard, canvas=canvas)
    return encode_shards(vae.encode_features, render_one, folder, shards, batch, vae.device)


def render_shard(number: int, canvas: int) -> RenderedShard[SceneSpec]:
    """Renders the pictures of a shard; the same number gives the same pictures."""
    rng = np.random.default_rng([number, _STREAM])
    pairs = [sample(rng, split="train", canvas=canvas) for _ in range(SHARD)]
    pictures = [render(scene, canvas, number * SHARD + index) for index, (_, scene) in enumerate(pairs)]
    objects = torch.stack([object_tokens(scene) for _, scene in pairs])
    return RenderedShard(number, [prompt.spec for prompt, _ in pairs], np.stack(pictures), objects)
