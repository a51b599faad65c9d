"""Encoded training scenes on disk: encoder features and what each scene shows.

Encoding costs as much as a training step, so it is done once. Features rather than bits are kept,
because the self-correction of Infinity flips bits and quantises anew at every step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepvar.embedded.scenes import Group, SceneSpec, render, sample
from stepvar.models.infinity.tokenizer import InfinityTokenizer

SHARD = 512
"""Scenes in one file."""


@dataclass
class FeatureStore:
    """A growing set of encoded scenes.

    Attributes:
        features: [S, d, H, W] float16.
        specs: What each scene shows; a prompt is put into new words at every use.
    """

    features: Tensor
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
        return cls(torch.cat([load_file(file)["features"] for file in files]), specs)

    def __len__(self) -> int:
        return len(self.specs)


def encode_scenes(
    tokenizer: InfinityTokenizer, folder: Path, shards: int, batch: int = 16, canvas: int = 192
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
    for shard in range(shards):
        file = folder / f"features-{shard:04}.safetensors"
        if not file.exists():
            _encode_shard(tokenizer, file, shard, batch, canvas)
        yield shard + 1


@torch.inference_mode()
def _encode_shard(tokenizer: InfinityTokenizer, file: Path, shard: int, batch: int, canvas: int) -> None:
    random = np.random.default_rng([shard, 1])
    pairs = [sample(random, split="train", canvas=canvas) for _ in range(SHARD)]
    parts = []
    for start in range(0, SHARD, batch):
        some = enumerate(pairs[start : start + batch], shard * SHARD + start)
        pictures = [render(scene, canvas, seed) for seed, (_, scene) in some]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.autocast(tokenizer.device.type, dtype=torch.bfloat16):
            parts.append(tokenizer.encode_features(images.to(tokenizer.device)).half().cpu())
    lines = [json.dumps(asdict(prompt.spec)) for prompt, _ in pairs]
    file.with_suffix(".jsonl").write_text("\n".join(lines))
    partial = file.with_suffix(".partial")
    save_file({"features": torch.cat(parts)}, partial)
    partial.replace(file)


def _spec_from_json(entry: dict) -> SceneSpec:
    groups = tuple(Group(**group) for group in entry["groups"])
    return SceneSpec(groups, entry["relation"], entry["background"])
