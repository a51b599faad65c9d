"""Embedded models: small ones inside the package that draw simple scenes, still and moving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    import torch

    from stepvar.models.infinity.pipeline import InfinityPipeline
    from stepvar.models.infinitystar.pipeline import InfinityStarPipeline

WEIGHTS = Path(__file__).parent / "weights"

MODELS: dict[str, Path] = {name: WEIGHTS / name for name in ("pictures", "pictures-384", "video")}
"""Folders of the embedded models."""

EMBEDDED_NAMES: dict[str, str] = {
    "embedded": "pictures",
    "embedded-384": "pictures-384",
    "embedded-video": "video",
}
"""What `--model` calls them."""


@overload
def load_embedded(
    name: Literal["pictures", "pictures-384"] = "pictures", dtype: torch.dtype | None = None
) -> InfinityPipeline: ...


@overload
def load_embedded(name: Literal["video"], dtype: torch.dtype | None = None) -> InfinityStarPipeline: ...


@overload
def load_embedded(name: str, dtype: torch.dtype | None = None) -> InfinityPipeline | InfinityStarPipeline: ...


def load_embedded(
    name: str = "pictures", dtype: torch.dtype | None = None
) -> InfinityPipeline | InfinityStarPipeline:
    """Loads an embedded model; needs no file but the package's own.

    Args:
        name: "pictures" of 256 x 256 pixels; "pictures-384", twelve scales as fine as those of large
            models; or "video" for the one that draws moving scenes.
        dtype: Number format, float32 by default: the weights ship as bfloat16, which keeps them
            small, and compute in float32, which keeps pictures equal on all machines.

    Raises:
        ValueError: When there is no such model.
        FileNotFoundError: When its weights are missing from this installation.
    """
    if name not in MODELS:
        raise ValueError(f"There is no embedded model {name!r}; there are {', '.join(MODELS)}.")
    if not MODELS[name].is_dir():
        raise FileNotFoundError(
            f"This installation lacks the weights of the embedded model {name!r}: install the package again."
        )
    import torch

    from stepvar.models.infinity.pipeline import InfinityPipeline
    from stepvar.models.infinitystar.pipeline import InfinityStarPipeline

    kind = InfinityStarPipeline if name == "video" else InfinityPipeline
    with _without_progress_bars():
        pipeline = kind.from_pretrained(MODELS[name], torch_dtype=dtype or torch.float32)
    # The path of the installation must not appear in the settings that pictures carry.
    pipeline.register_to_config(_name_or_path="embedded" if name == "pictures" else f"embedded {name}")
    if name == "video":
        pipeline.example_prompt = "a red star moves to the left on grass"
    return pipeline


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hides the progress bars of loading, which takes no time; they are shown again if they were."""
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
