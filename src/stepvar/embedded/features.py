"""Encoded training scenes on disk: encoder features and what each scene shows.

Encoding costs as much as a training step, so it is done once. Features rather than bits are kept,
because the self-correction of Infinity flips bits and quantises anew at every step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepvar.embedded.architecture import PIXELS_PER_TOKEN
from stepvar.embedded.precision import mixed_precision
from stepvar.embedded.scenes import Group, Scene, SceneSpec, render, sample
from stepvar.models.infinity.tokenizer import InfinityTokenizer

SHARD = 512
"""Scenes in one file."""


@dataclass
class FeatureStore:
    """A growing set of encoded scenes.

    Attributes:
        features: [S, d, H, W] float16.
        objects: [S, H, W] bool, tokens on the bounding square of an object.
        specs: What each scene shows; a prompt is put into new words at every use.
    """

    features: Tensor
    objects: Tensor
    specs: list[SceneSpec]

    @classmethod
    def load(cls, folder: Path) -> FeatureStore:
        """Reads all shards of a folder.

        Raises:
            FileNotFoundError: When there are none.
        """
        files = sorted(folder.glob("features-*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no encoded scenes; encode some first.")
        specs: list[SceneSpec] = []
        for file in files:
            lines = file.with_suffix(".jsonl").read_text().splitlines()
            specs += [_spec_from_json(json.loads(line)) for line in lines]
        shards = [load_file(file) for file in files]
        features, objects = (torch.cat([shard[name] for shard in shards]) for name in ("features", "objects"))
        return cls(features, objects, specs)

    def __len__(self) -> int:
        return len(self.specs)


def encode_scenes(
    tokenizer: InfinityTokenizer, folder: Path, shards: int, canvas: int, batch: int = 16
) -> Iterator[int]:
    """Encodes shards of random training scenes that a folder does not have yet.

    Args:
        tokenizer: On the device to run on.
        folder: Where the shards go.
        shards: How many the folder shall have.
        batch: Scenes encoded at once.
        canvas: Side of the pictures in pixels.

    Yields:
        The number of shards done so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"features-{shard:04}.safetensors" for shard in range(shards)]
    wanted = [shard for shard, file in enumerate(files) if not file.exists()]
    done = shards - len(wanted)
    # Rendering needs no more than one core beside a CPU's encoder, but many beside a GPU's.
    workers = 1 if tokenizer.device.type == "cpu" else max((os.cpu_count() or 1) - 1, 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for scenes in pool.map(partial(draw_shard, canvas=canvas), wanted):
            _encode_shard(tokenizer, files[scenes.shard], scenes, batch)
            done += 1
            yield done


@dataclass(frozen=True)
class ShardScenes:
    """Training scenes of one shard, drawn and rendered.

    Attributes:
        shard: Which one.
        specs: What every scene shows.
        pictures: uint8 [SHARD, canvas, canvas, 3].
        objects: bool [SHARD, H, W], see `object_tokens`.
    """

    shard: int
    specs: list[SceneSpec]
    pictures: NDArray[np.uint8]
    objects: Tensor


def draw_shard(shard: int, canvas: int) -> ShardScenes:
    """Draws the scenes of a shard; the same numbers give the same scenes."""
    random = np.random.default_rng([shard, 1])
    pairs = [sample(random, split="train", canvas=canvas) for _ in range(SHARD)]
    pictures = [render(scene, canvas, shard * SHARD + index) for index, (_, scene) in enumerate(pairs)]
    objects = torch.stack([object_tokens(scene) for _, scene in pairs])
    return ShardScenes(shard, [prompt.spec for prompt, _ in pairs], np.stack(pictures), objects)


@torch.inference_mode()
def _encode_shard(tokenizer: InfinityTokenizer, file: Path, scenes: ShardScenes, batch: int) -> None:
    parts = []
    for pictures in torch.from_numpy(scenes.pictures).split(batch):
        images = pictures.to(tokenizer.device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with mixed_precision(tokenizer.device):
            parts.append(tokenizer.encode_features(images).half().cpu())
    lines = [json.dumps(asdict(spec)) for spec in scenes.specs]
    file.with_suffix(".jsonl").write_text("\n".join(lines))
    unfinished = file.with_suffix(".partial")
    save_file({"features": torch.cat(parts), "objects": scenes.objects}, unfinished)
    unfinished.replace(file)


def object_tokens(scene: Scene) -> Tensor:
    """Which tokens of the last scale lie on the bounding square of an object, bool [H, W]."""
    tokens = scene.canvas // PIXELS_PER_TOKEN
    covered = torch.zeros(tokens, tokens, dtype=torch.bool)
    for item in scene.objects:
        left, top = (max(int((centre - item.radius) // PIXELS_PER_TOKEN), 0) for centre in (item.x, item.y))
        right, bottom = (int((centre + item.radius) // PIXELS_PER_TOKEN) + 1 for centre in (item.x, item.y))
        covered[top:bottom, left:right] = True
    return covered


def _spec_from_json(entry: dict) -> SceneSpec:
    groups = tuple(Group(**group) for group in entry["groups"])
    return SceneSpec(groups, entry["relation"], entry["background"])
