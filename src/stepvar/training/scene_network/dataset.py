"""Object proposals of the frozen backbone, stored for the training of the encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.scenes import DetectedObject, Group, SceneSpec
from stepvar.scenes.network.network import SceneNetwork
from stepvar.training.scene_network.prompts import AnnotatedScene


@dataclass
class ProposalDataset:
    """A growing set of scenes.

    Attributes:
        parts: Features, objectness, positions and context of `ObjectProposals`, one entry a batch until
            `concatenated`.
        scenes: What they show.
    """

    parts: list[tuple[Tensor, ...]]
    scenes: list[AnnotatedScene]

    @classmethod
    def empty(cls) -> ProposalDataset:
        """No scene yet."""
        return cls([], [])

    def __len__(self) -> int:
        return len(self.scenes)

    @torch.no_grad()
    def add(self, network: SceneNetwork, pictures: Tensor, scenes: Sequence[AnnotatedScene]) -> None:
        """Adds the proposals of pictures uint8 [B, H, W, 3] of scenes."""
        found = network.propose(pictures)
        self.parts.append((found.features, found.objectness, found.positions, found.context))
        self.scenes += scenes

    def concatenated(self, device: torch.device) -> ProposalDataset:
        """The same as one part, on a device."""
        joined = tuple(torch.cat(values).to(device) for values in zip(*self.parts, strict=True))
        return ProposalDataset([joined], self.scenes)

    def at(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Inputs of `PictureEncoder` for some scenes of a concatenated set."""
        return tuple(values[indices] for values in self.parts[0])

    def save(self, file: Path) -> None:
        """Writes a concatenated set; the file appears only when it is complete."""
        partial = file.with_suffix(".partial")
        torch.save(
            {"parts": self.parts[0], "scenes": [json.dumps(asdict(scene)) for scene in self.scenes]}, partial
        )
        partial.replace(file)

    @classmethod
    def load(cls, file: Path, device: torch.device) -> ProposalDataset:
        """Reads what `save` wrote."""
        state = torch.load(file, map_location=device, weights_only=True)
        return cls([tuple(state["parts"])], [_scene_from_json(json.loads(line)) for line in state["scenes"]])


def _scene_from_json(entry: dict[str, Any]) -> AnnotatedScene:
    spec = entry["spec"]
    groups = tuple(Group(**group) for group in spec["groups"])
    objects = tuple(DetectedObject(**item | {"box": tuple(item["box"])}) for item in entry["objects"])
    return AnnotatedScene(SceneSpec(groups, spec["relation"], spec["background"]), objects, entry["side"])
