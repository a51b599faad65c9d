"""Encoded training scenes on disk: features of the VAE's encoder and what each scene shows.

Encoding costs as much as a training step, so it is done once. Features rather than bits are stored, because
the self-correction of Infinity flips bits and quantises anew at every step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepvar.scenes import Scene, SceneSpec
from stepvar.scenes.moving.spec import VideoSpec
from stepvar.training.common.crops import PIXELS_PER_TOKEN, Pixels, to_signed
from stepvar.training.common.precision import mixed_precision

SHARD = 512
"""Scenes in one file."""

Spec = TypeVar("Spec", SceneSpec, VideoSpec)


@dataclass
class FeatureDataset(ABC, Generic[Spec]):
    """Encoded scenes to learn from.

    Attributes:
        features: [S, d, H, W] float16; of videos [S, d, T, H, W].
        objects: [S, H, W] bool, tokens on the bounding square of an object; of videos [S, T, H, W].
        specs: What each scene shows.
    """

    features: Tensor
    objects: Tensor
    specs: list[Spec]

    @classmethod
    def load(cls, folder: Path) -> FeatureDataset[Spec]:
        """Reads all shards of a folder.

        Raises:
            FileNotFoundError: When there are none.
        """
        files = sorted(folder.glob("features-*.safetensors"))
        if not files:
            raise FileNotFoundError(f"'{folder}' holds no encoded scenes; encode some first.")
        specs = [
            cls.spec_from_json(json.loads(line))
            for file in files
            for line in file.with_suffix(".jsonl").read_text().splitlines()
        ]
        shards = [load_file(file) for file in files]
        features, objects = (torch.cat([shard[name] for shard in shards]) for name in ("features", "objects"))
        return cls(features, objects, specs)

    @staticmethod
    @abstractmethod
    def spec_from_json(entry: dict[str, Any]) -> Spec:
        """A spec from what `dataclasses.asdict` made of it."""

    @abstractmethod
    def prompt(self, rng: np.random.Generator, index: int) -> str:
        """A prompt for a scene, in words chosen anew at every call."""

    def __len__(self) -> int:
        return len(self.specs)


@dataclass(frozen=True)
class RenderedShard(Generic[Spec]):
    """Training scenes of one shard.

    Attributes:
        number: Of the shard.
        specs: What every scene shows.
        pixels: uint8 [SHARD, canvas, canvas, 3]; of videos [SHARD, F, canvas, canvas, 3].
        objects: As in `FeatureDataset`.
    """

    number: int
    specs: list[Spec]
    pixels: Pixels
    objects: Tensor


def encode_shards(
    encode: Callable[[Tensor], Tensor],
    render: Callable[[int], RenderedShard[Spec]],
    folder: Path,
    shards: int,
    batch: int,
    device: torch.device,
) -> Iterator[int]:
    """Encodes the shards that a folder lacks.

    Args:
        encode: Pixels [B, 3, ...] in -1..1 -> features [B, d, ...].
        render: Renders the scenes of a shard; runs in other processes.
        folder: Where the shards go.
        shards: Number of shards in the finished folder.
        batch: Scenes encoded at once.
        device: Where encoding runs.

    Yields:
        The number of shards done so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"features-{number:04}.safetensors" for number in range(shards)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    done = shards - len(missing)
    # Rendering needs no more than one core beside a CPU's encoder, but many beside a GPU's.
    workers = 1 if device.type == "cpu" else max((os.cpu_count() or 1) - 1, 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for shard in pool.map(render, missing):
            _encode_shard(encode, files[shard.number], shard, batch, device)
            done += 1
            yield done


@torch.inference_mode()
def _encode_shard(
    encode: Callable[[Tensor], Tensor],
    file: Path,
    shard: RenderedShard[Spec],
    batch: int,
    device: torch.device,
) -> None:
    parts = []
    for pixels in torch.from_numpy(shard.pixels).split(batch):
        signed = to_signed(pixels.to(device).movedim(-1, 1))
        with mixed_precision(device):
            parts.append(encode(signed).half().cpu())
    file.with_suffix(".jsonl").write_text("\n".join(json.dumps(asdict(spec)) for spec in shard.specs))
    unfinished = file.with_suffix(".partial")
    save_file({"features": torch.cat(parts).contiguous(), "objects": shard.objects}, unfinished)
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
