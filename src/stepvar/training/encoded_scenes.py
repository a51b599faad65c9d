"""Encoded training scenes on disk: encoder features and what each scene shows.

Encoding costs as much as a training step, so it is done once. Features rather than bits are kept,
because the self-correction of Infinity flips bits and quantises anew at every step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepvar.models.infinity.vae import InfinityVAE
from stepvar.scenes import Group, Scene, SceneSpec, render, sample, write
from stepvar.training.pictures.sizes import PIXELS_PER_TOKEN
from stepvar.training.precision import mixed_precision

SHARD = 512
"""Scenes in one file."""


@dataclass
class FeatureStore:
    """A growing set of encoded scenes.

    Attributes:
        features: [S, d, H, W] float16; of videos [S, d, T, H, W].
        objects: [S, H, W] bool, tokens on the bounding square of an object; of videos [S, T, H, W].
        specs: What each scene shows.
        wording: Puts a spec into words, other ones at every use.
    """

    features: Tensor
    objects: Tensor
    specs: list[Any]
    wording: Callable[[np.random.Generator, Any], str] = write

    @classmethod
    def load(
        cls,
        folder: Path,
        read: Callable[[dict[str, Any]], Any] | None = None,
        wording: Callable[[np.random.Generator, Any], str] = write,
    ) -> FeatureStore:
        """Reads all shards of a folder.

        Args:
            read: Makes a spec of what was stored of it; by default that of a picture.

        Raises:
            FileNotFoundError: When there are none.
        """
        files = sorted(folder.glob("features-*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no encoded scenes; encode some first.")
        specs: list[Any] = []
        for file in files:
            lines = file.with_suffix(".jsonl").read_text().splitlines()
            specs += [(read or _spec_from_json)(json.loads(line)) for line in lines]
        shards = [load_file(file) for file in files]
        features, objects = (torch.cat([shard[name] for shard in shards]) for name in ("features", "objects"))
        return cls(features, objects, specs, wording)

    def __len__(self) -> int:
        return len(self.specs)

    def write(self, random: np.random.Generator, index: int) -> str:
        """What a scene shows, in words."""
        return self.wording(random, self.specs[index])


@dataclass(frozen=True)
class ShardScenes:
    """Training scenes of one shard, drawn and rendered.

    Attributes:
        shard: Which one.
        specs: What every scene shows.
        pixels: uint8 [SHARD, canvas, canvas, 3]; of videos [SHARD, F, canvas, canvas, 3].
        objects: As in `FeatureStore`.
    """

    shard: int
    specs: list[Any]
    pixels: NDArray[np.uint8]
    objects: Tensor


def encode_scenes(
    tokenizer: InfinityVAE, folder: Path, shards: int, canvas: int, batch: int = 16
) -> Iterator[int]:
    """Encodes shards of random training pictures that a folder does not have yet.

    Args:
        tokenizer: On the device to run on.
        folder: Where the shards go.
        shards: How many the folder shall have.
        canvas: Side of the pictures in pixels.
        batch: Scenes encoded at once.

    Yields:
        The number of shards done so far.
    """
    draw = partial(draw_shard, canvas=canvas)
    return encode_shards(tokenizer.encode_features, draw, folder, shards, batch, tokenizer.device)


def encode_shards(
    encode: Callable[[Tensor], Tensor],
    draw: Callable[[int], ShardScenes],
    folder: Path,
    shards: int,
    batch: int,
    device: torch.device,
) -> Iterator[int]:
    """Encodes shards that a folder does not have yet.

    Args:
        encode: Pixels [B, 3, ...] in -1..1 -> features [B, d, ...].
        draw: Draws the scenes of a shard; runs in other processes.
        folder: Where the shards go.
        shards: How many the folder shall have.
        batch: Scenes encoded at once.
        device: Where encoding runs.

    Yields:
        The number of shards done so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"features-{shard:04}.safetensors" for shard in range(shards)]
    wanted = [shard for shard, file in enumerate(files) if not file.exists()]
    done = shards - len(wanted)
    # Rendering needs no more than one core beside a CPU's encoder, but many beside a GPU's.
    workers = 1 if device.type == "cpu" else max((os.cpu_count() or 1) - 1, 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for scenes in pool.map(draw, wanted):
            _encode_shard(encode, files[scenes.shard], scenes, batch, device)
            done += 1
            yield done


def draw_shard(shard: int, canvas: int) -> ShardScenes:
    """Draws the pictures of a shard; the same numbers give the same scenes."""
    random = np.random.default_rng([shard, 1])
    pairs = [sample(random, split="train", canvas=canvas) for _ in range(SHARD)]
    pictures = [render(scene, canvas, shard * SHARD + index) for index, (_, scene) in enumerate(pairs)]
    objects = torch.stack([object_tokens(scene) for _, scene in pairs])
    return ShardScenes(shard, [prompt.spec for prompt, _ in pairs], np.stack(pictures), objects)


@torch.inference_mode()
def _encode_shard(
    encode: Callable[[Tensor], Tensor], file: Path, scenes: ShardScenes, batch: int, device: torch.device
) -> None:
    parts = []
    for pixels in torch.from_numpy(scenes.pixels).split(batch):
        signed = pixels.to(device).movedim(-1, 1).float() / 127.5 - 1.0
        with mixed_precision(device):
            parts.append(encode(signed).half().cpu())
    lines = [json.dumps(asdict(spec)) for spec in scenes.specs]
    file.with_suffix(".jsonl").write_text("\n".join(lines))
    unfinished = file.with_suffix(".partial")
    save_file({"features": torch.cat(parts).contiguous(), "objects": scenes.objects}, unfinished)
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
