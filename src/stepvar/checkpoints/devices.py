"""Which devices torch can use on this machine."""

from __future__ import annotations

import torch

ACCELERATORS = ("cuda", "xpu", "mps")


def count_devices(kind: str) -> int:
    """Devices of a kind, "cuda" for example, that torch can use here; 1 for kinds that it does not count."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    backend = getattr(torch, kind, None)
    if kind == "cpu" or backend is None or not hasattr(backend, "device_count"):
        return 1
    return int(backend.device_count()) if backend.is_available() else 0


def present_accelerators() -> list[str]:
    """Kinds of devices that are there beside the CPU."""
    return [kind for kind in ACCELERATORS if count_devices(kind)]
