"""Scene network: features of pictures and prompts, and the attributes that a picture shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from stepvar.scenes.network.network import SceneNetwork

WEIGHTS = Path(__file__).parent / "weights"


def load_scene_network(folder: Path = WEIGHTS, device: torch.device | str = "cpu") -> SceneNetwork:
    """Loads the network that ships inside the package, ready to use.

    Args:
        folder: Another one, as `python -m stepvar.training scene-network` writes it.
        device: Where it runs.

    Raises:
        ValueError: When the folder holds no such network.
    """
    from stepvar.scenes.network.network import SceneNetwork

    return SceneNetwork.load(folder).to(device)
