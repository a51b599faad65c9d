"""Scenes as a locked eye sees them, kept for the training of the encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from stepvar.scenes import DetectedObject, Group, SceneSpec
from stepvar.scenes.network.network import SceneNetwork
from stepvar.training.scene_network.prompts import KnownScene


@dataclass
class EncodedScenes:
    """A growing set of scenes.

    Attributes:
        parts: Features, gates, places and ground of `SeenObjects`, one entry a batch until `gathered`.
        scenes: What they show.
    """

    parts: list[tuple[Tensor, ...]]
    scenes: list[KnownScene]

    @classmethod
    def empty(cls) -> EncodedScenes:
        """No scene yet."""
        return cls([], [])

    def __len__(self) -> int:
        return len(self.scenes)

    @torch.no_grad()
    def add(self, network: SceneNetwork, pictures: Tensor, scenes: Sequence[KnownScene]) -> None:
        """Looks at pictures uint8 [B, H, W, 3] of scenes."""
        seen = network.see(pictures)
        self.parts.append((seen.features, seen.gates, seen.places, seen.ground))
        self.scenes += scenes

    def gathered(self, device: torch.device) -> EncodedScenes:
        """The same as one part on a device."""
        joined = tuple(torch.cat(values).to(device) for values in zip(*self.parts, strict=True))
        return EncodedScenes([joined], self.scenes)

    def at(self, indices: Tensor) -> tuple[Tensor, ...]:
        """What `PictureEncoder` takes, of some scenes of a gathered set."""
        return tuple(values[indices] for values in self.parts[0])

    def save(self, file: Path) -> None:
        """Writes a gathered set; the file is there only when it is whole."""
        partial = file.with_suffix(".partial")
        torch.save(
            {"parts": self.parts[0], "scenes": [json.dumps(asdict(scene)) for scene in self.scenes]}, partial
        )
        partial.replace(file)

    @classmethod
    def load(cls, file: Path, device: torch.device) -> EncodedScenes:
        """Reads what `save` wrote."""
        state = torch.load(file, map_location=device, weights_only=True)
        return cls([tuple(state["parts"])], [_scene_from_json(json.loads(line)) for line in state["scenes"]])


def _scene_from_json(entry: dict) -> KnownScene:
    spec = entry["spec"]
    groups = tuple(Group(**group) for group in spec["groups"])
    objects = tuple(DetectedObject(**item | {"box": tuple(item["box"])}) for item in entry["objects"])
    return KnownScene(SceneSpec(groups, spec["relation"], spec["background"]), objects, entry["side"])
