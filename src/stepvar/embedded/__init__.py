"""The model that ships inside the package: a small Infinity that draws simple scenes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

    with _without_progress_bars():
        return InfinityPipeline.from_pretrained(WEIGHTS, torch_dtype=dtype or torch.float32)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A model that loads in a blink needs no bars; they are switched back on if they were."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [
        library
        for library in (diffusers_logging, transformers_logging)
        if getattr(library, "_tqdm_active", True)
    ]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
