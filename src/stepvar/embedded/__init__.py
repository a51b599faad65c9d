"""The model that ships inside the package: a small Infinity that draws simple scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from stepvar.models.infinity.pipeline import InfinityPipeline

WEIGHTS = Path(__file__).parent / "weights"


def load_embedded(dtype: torch.dtype | None = None) -> InfinityPipeline:
    """Loads the embedded model; needs no file but the package's own.

    Args:
        dtype: Number format, float32 by default: the weights ship as bfloat16, which keeps them
            small, and compute in float32, which keeps pictures equal on all machines.
    """
    import torch

    from stepvar.models.infinity.pipeline import InfinityPipeline

    pipeline = InfinityPipeline.from_pretrained(WEIGHTS, torch_dtype=dtype or torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
