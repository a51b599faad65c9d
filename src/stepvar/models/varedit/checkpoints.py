"""Loaders of VAREdit's checkpoints, published or our own: Infinity's files, with what they do not tell.

Source of the file forms: HiDream-ai/VAREdit, infer.py and tools/run_infinity.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.official import OfficialObjects
from stepvar.models.infinity import checkpoints as infinity
from stepvar.models.infinity.official import infer_config
from stepvar.models.infinity.published import published_name
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.varedit.published import BUDGETS, find_resolution

PathLike = str | os.PathLike[str]


def load_transformer(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    resolution: str | None = None,
) -> InfinityTransformer:
    """Loads a transformer; its size is read off the weights.

    Args:
        path: A published file (8B-1024.pth), a training checkpoint, a folder of shards with an index, or a
            folder that `save_pretrained` wrote.
        dtype: Number format; None keeps the file's. The modules outside the blocks that the official
            inference runs in float32 are float32 in any case.
        device: Where the weights go; None is the CPU.
        resolution: "256", "512" or "1024": side in pixels of the square that the weights were trained for;
            None takes it from the name of the file, from the published size, or from the folder.

    Returns:
        The transformer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, or no transformer of Infinity's
            architecture; or when nothing tells its resolution.
        ValueError: When there is no such resolution.
    """
    path = Path(path).expanduser()
    budgets = None if resolution is None else _budgets(resolution)
    transformer = infinity.load_transformer(path, dtype, device, budgets)
    config = transformer.config
    if (path / "config.json").is_file():
        if budgets is not None and list(config.budgets or ()) != budgets:
            raise CheckpointError(
                f"'{path}' says that its weights are for {_names(config.budgets)} pixels, not {resolution}: "
                "leave resolution out."
            )
        return transformer
    if budgets is None:
        found = find_resolution(path.name, published_name(config))
        transformer.register_to_config(budgets=_budgets(_require_resolution(found, f"'{path}'")))
    return transformer


def _transformer_from_object(
    state: Mapping[str, Tensor], model: Any, vae: Any, **overrides: Any
) -> InfinityTransformer:
    """A transformer on the weights of an official `Infinity` of VAREdit's code, which knows its budget."""
    resolution = overrides.pop("resolution", None)
    if resolution is not None:
        overrides["budgets"] = _budgets(resolution)
    elif overrides.get("grids") is None:
        named = getattr(model, "pn", None)
        sides = [side for side, budget in BUDGETS.items() if budget == named]
        size = published_name(infer_config(state, "The model"))
        found = sides[0] if sides else find_resolution("", size)
        overrides["budgets"] = _budgets(_require_resolution(found, "The model"))
    return infinity.transformer_from_state(state, "The model", pixels_per_token=vae.token_stride, **overrides)


def _budgets(resolution: str) -> list[str]:
    """The pixel budget of a resolution, as a transformer's configuration has it.

    Raises:
        ValueError: When there is none.
    """
    if str(resolution) not in BUDGETS:
        raise ValueError(f"Unknown resolution {resolution!r}; known are {', '.join(BUDGETS)}.")
    return [BUDGETS[str(resolution)]]


def _require_resolution(found: str | None, source: str) -> str:
    if found is None:
        raise CheckpointError(
            f"{source} may have been trained for 512 or for 1024 pixels, which its weights do not tell, and "
            "positions depend on it: say so by resolution= (--resolution), or name the file as the published "
            "ones, such as 8B-512.pth."
        )
    return found


def _names(budgets: Sequence[str] | None) -> str:
    """Resolutions of pixel budgets, for a message."""
    return " and ".join(side for side, budget in BUDGETS.items() if budget in (budgets or ())) or "unknown"


convert = replace(
    infinity.convert,
    pipeline="VAREditPipeline",
    load_transformer=load_transformer,
    transformer_options=("resolution",),
)

OBJECTS = OfficialObjects(_transformer_from_object, infinity.OBJECTS.vae, ("resolution", "grids"))
