"""Random generators of known seeds on the device where their numbers are used."""

from __future__ import annotations

import torch


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator on a device; for `meta` tensors, which hold no numbers, one of the CPU."""
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)
