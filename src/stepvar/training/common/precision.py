"""Number format of the arithmetic in training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """Autocast to bfloat16 where the hardware multiplies it, float32 elsewhere.

    A CPU without bfloat16 instructions emulates them, about ten times slower than float32.
    """
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
