"""Encoded training videos: rendering, encoding and reading of shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepvar.models.infinitystar.schedules import FRAMES_PER_LATENT
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.scenes.moving.grammar import sample, write_prompt
from stepvar.scenes.moving.scenes import FRAMES, render_video
from stepvar.scenes.moving.spec import MovingObject, MovingScene, VideoSpec
from stepvar.scenes.spec import Group
from stepvar.training.common.features import (
    SHARD,
    FeatureDataset,
    RenderedShard,
    encode_shards,
    object_tokens,
)

_STREAM = 2
"""Separates the random numbers of training videos from others of the same seed."""


class VideoFeatures(FeatureDataset[VideoSpec]):
    """Encoded videos."""

    @staticmethod
    def spec_from_json(entry: dict[str, Any]) -> VideoSpec:
        objects = tuple(MovingObject(Group(**item["group"]), item["motion"]) for item in entry["objects"])
        return VideoSpec(objects, entry["background"])

    def prompt(self, rng: np.random.Generator, index: int) -> str:
        return write_prompt(rng, self.specs[index])


def encode_videos(vae: InfinityStarVAE, folder: Path, shards: int, batch: int = 8) -> Iterator[int]:
    """Encodes the shards of random training videos that a folder lacks; yields how many are done."""
    return encode_shards(vae.encode, render_shard, folder, shards, batch, vae.device)


def render_shard(number: int, count: int = SHARD) -> RenderedShard[VideoSpec]:
    """Renders the videos of a shard; the same number gives the same videos."""
    rng = np.random.default_rng([number, _STREAM])
    pairs = [sample(rng) for _ in range(count)]
    videos = [render_video(scene, seed=number * SHARD + index) for index, (_, scene) in enumerate(pairs)]
    objects = torch.stack([moving_tokens(scene) for _, scene in pairs])
    return RenderedShard(number, [prompt.spec for prompt, _ in pairs], np.stack(videos), objects)


def moving_tokens(scene: MovingScene, frames: int = FRAMES) -> Tensor:
    """Which tokens of the last scale lie on the path of an object, bool [T, H, W].

    A latent frame covers the frames since the one before it.
    """
    covered = [object_tokens(scene.at(frame / (frames - 1))) for frame in range(frames)]
    later = torch.stack(covered[1:]).unflatten(0, (-1, FRAMES_PER_LATENT)).any(dim=1)
    return torch.cat([covered[0][None], later])
