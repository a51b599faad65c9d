"""Encoded training videos: what a shard draws, and how it is read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepvar.models.infinitystar.schedules import FRAMES_PER_LATENT
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.scenes.moving.grammar import sample, write
from stepvar.scenes.moving.scenes import FRAMES, render_video
from stepvar.scenes.moving.spec import Mover, MovingScene, VideoSpec
from stepvar.scenes.spec import Group
from stepvar.training.encoded_scenes import SHARD, FeatureStore, ShardScenes, encode_shards, object_tokens

_TRAINING = 2
"""Tells the random numbers of training videos from those of others."""


def encode_videos(tokenizer: InfinityStarVAE, folder: Path, shards: int, batch: int = 8) -> Iterator[int]:
    """Encodes shards of random training videos that a folder does not have yet; yields how many are done."""
    return encode_shards(tokenizer.encode, draw_shard, folder, shards, batch, tokenizer.device)


def load_videos(folder: Path) -> FeatureStore:
    """Reads what `encode_videos` wrote.

    Raises:
        FileNotFoundError: When there is nothing.
    """
    return FeatureStore.load(folder, _spec_from_json, write)


def draw_shard(shard: int, count: int = SHARD) -> ShardScenes:
    """Draws the videos of a shard; the same numbers give the same videos."""
    random = np.random.default_rng([shard, _TRAINING])
    pairs = [sample(random) for _ in range(count)]
    videos = [render_video(scene, seed=shard * SHARD + index) for index, (_, scene) in enumerate(pairs)]
    objects = torch.stack([moving_tokens(scene) for _, scene in pairs])
    return ShardScenes(shard, [prompt.spec for prompt, _ in pairs], np.stack(videos), objects)


def moving_tokens(scene: MovingScene, frames: int = FRAMES) -> Tensor:
    """Which tokens of the last scale lie on the way of an object, bool [T, H, W].

    A latent frame stands for the frames since the one before it.
    """
    covered = [object_tokens(scene.at(frame / (frames - 1))) for frame in range(frames)]
    later = torch.stack(covered[1:]).unflatten(0, (-1, FRAMES_PER_LATENT)).any(dim=1)
    return torch.cat([covered[0][None], later])


def _spec_from_json(entry: dict[str, Any]) -> VideoSpec:
    movers = tuple(Mover(Group(**mover["group"]), mover["motion"]) for mover in entry["movers"])
    return VideoSpec(movers, entry["background"])
