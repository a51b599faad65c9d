"""Loaders of InfinityStar's checkpoints, published or our own, and conversion of one into the other.

Source of the file forms: FoundationVision/InfinityStar (MIT), tools/run_infinity.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints.conversion import Conversion, TextSide
from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.layouts import build_empty, build_saved, fill, require_same_layout, saved_config
from stepvar.checkpoints.official import OfficialObjects
from stepvar.checkpoints.weights import Checkpoint, TensorMap
from stepvar.models.common.t5 import load_text_encoder, load_text_tokenizer
from stepvar.models.infinitystar.official import (
    UNUSED,
    infer_config,
    infer_vae_config,
    official_keys,
    to_official,
    vae_part,
)
from stepvar.models.infinitystar.schedules import PUBLISHED
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import InfinityStarVAE

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

_TRANSFORMER_ROUTES = (("trainer", "gpt_fsdp"), ("trainer", "gpt_wo_ddp"), ("state_dict",))
_VAE_ROUTES = (("vae",),)
"""Where published files and training checkpoints keep the state dict."""


def from_official(state: Mapping[str, Tensor], source: str = "The state dict") -> TensorMap:
    """An official state dict, complete, under our keys; every name and shape is checked.

    Raises:
        CheckpointError: When it belongs to another architecture, or something is missing, unexpected or of
            another shape.
    """
    config = infer_config(state, source)
    model = build_empty(InfinityStarTransformer, config, source)
    return _rename(_check_official(state, model, source), state)


def transformer_from_state(
    state: Mapping[str, Tensor], source: str = "The state dict", **overrides: Any
) -> InfinityStarTransformer:
    """A transformer with the weights of an official state dict, checked strictly.

    Args:
        overrides: Arguments of the constructor that the weights do not tell.

    Raises:
        CheckpointError: As for `from_official`.
    """
    transformer = build_empty(InfinityStarTransformer, infer_config(state, source) | overrides, source)
    transformer.load_state_dict(from_official(state, source), assign=True)
    return transformer.eval()


def vae_from_state(state: Mapping[str, Tensor], source: str = "The state dict") -> InfinityStarVAE:
    """A video tokenizer with the weights of an official state dict; what else it holds is left out.

    Raises:
        CheckpointError: When it belongs to another architecture, or something is missing or of another shape.
    """
    tokenizer = build_empty(InfinityStarVAE, infer_vae_config(state, source), source)
    own = _own_part(state, tokenizer.state_dict())
    require_same_layout(own, tokenizer.state_dict(), source)
    tokenizer.load_state_dict(own, assign=True)
    return tokenizer.eval()


def _own_part(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> TensorMap:
    """What a tokenizer needs; a published file may hold more, which the official loader ignores too."""
    return {key: value for key, value in vae_part(state).items() if key in expected}


def load_official(transformer: InfinityStarTransformer, state: Mapping[str, Tensor]) -> None:
    """Loads an official state dict into an existing transformer, strictly.

    Only the unconditional text may be of another length, as in the official loader: a longer one is cut, a
    shorter one leaves the transformer's own rows after it.

    Raises:
        CheckpointError: As for `from_official`.
    """
    source, text = "The state dict", "cfg_uncond"
    state = dict(state)
    own = transformer.unconditional_text.weight.detach()
    if text in state and state[text].shape[1:] == own.shape[1:]:
        given = state[text][: len(own)]
        state[text] = torch.cat([given.to(own), own[len(given) :]])
    infer_config(state, source)
    transformer.load_state_dict(_rename(_check_official(state, transformer, source), state))


def _check_official(
    state: Mapping[str, Tensor], transformer: InfinityStarTransformer, source: str
) -> dict[str, str]:
    """Official key -> our key, after checking an official state dict against a transformer."""
    require_same_layout(state, to_official(transformer.state_dict(), transformer.config), source)
    names = official_keys(transformer.config.depth, transformer.config.block_chunks)
    return {theirs: ours for ours, theirs in names.items()}


def _rename(names: Mapping[str, str], state: Mapping[str, Tensor]) -> TensorMap:
    """A part of a checked official state dict under our keys, without the token that is never read."""
    return {names[key]: value for key, value in state.items() if key != UNUSED}


def load_transformer(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    resolution: str | None = None,
) -> InfinityStarTransformer:
    """Loads a transformer, one shard at a time; its size is read off the weights.

    Args:
        path: The published folder of shards with an index, a flat state dict, a training checkpoint, or a
            folder that `save_pretrained` wrote.
        dtype: Number format of the blocks; None keeps the file's. What the official inference runs in
            float32 is float32 in any case.
        device: Where the weights go; None is the CPU.
        resolution: What the weights were trained for, "480p", "720p" or "interact"; None takes it from a
            saved folder's configuration, or from the name of the file or folder, or else of the folder around
            it, and 480p with a warning where no name says it.

    Returns:
        The transformer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, or not an InfinityStar transformer.
        ValueError: When the resolution is unknown.
    """
    path = Path(path).expanduser()
    source = f"'{path}'"
    if resolution is not None and resolution not in PUBLISHED:
        raise ValueError(f"Unknown resolution {resolution!r}; known are {', '.join(PUBLISHED)}.")
    checkpoint = Checkpoint.open(path, _TRANSFORMER_ROUTES)
    config = saved_config(path, InfinityStarTransformer)
    rename: Callable[[TensorMap], TensorMap] = dict
    if config is None:
        config = infer_config(checkpoint.layout, source)
        config["resolution"] = resolution or _named_resolution(path)
        transformer = build_empty(InfinityStarTransformer, config, source)
        rename = partial(_rename, _check_official(checkpoint.layout, transformer, source))
    else:
        if resolution is not None:
            config["resolution"] = _changed_resolution(config, resolution, source)
        transformer = build_saved(InfinityStarTransformer, checkpoint, config)
    fill(transformer, checkpoint, rename, dtype, device)
    return transformer.eval()


def _named_resolution(path: Path) -> str:
    """The published models differ by the names of their folders alone.

    The folder around one may hold several models, so its name counts only where the own one says nothing.
    """
    absolute = path.absolute()
    for name in (absolute.name.lower(), absolute.parent.name.lower()):
        # The official name of the interactive weights may tell their size too.
        for resolution in ("interact", "720p", "480p"):
            if resolution in name:
                return resolution
    logger.warning(
        "Neither '%s' nor the folder around it is named after a resolution, so the weights are taken for "
        "those of 480p; if they are of 720p or interact, say so: --resolution, or resolution= in Python.",
        path,
    )
    return "480p"


def _changed_resolution(config: Mapping[str, Any], resolution: str, source: str) -> str:
    """A resolution for a saved model whose own was guessed wrongly.

    Raises:
        ValueError: When the model draws grids of its own, so that nothing was guessed.
    """
    if config.get("grids") is not None:
        raise ValueError(f"{source} draws grids of its own, not those of {resolution}: leave resolution out.")
    return resolution


def load_vae(
    path: PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> InfinityStarVAE:
    """Loads the video tokenizer; its architecture is read off the weights.

    Args:
        path: The published file (infinitystar_videovae.pth), or a folder that `save_pretrained` wrote.
        dtype: Number format of the decoder; None keeps the file's. The encoder is float32 in any case.
        device: Where the weights go; None is the CPU.

    Returns:
        The tokenizer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, or no video tokenizer of InfinityStar.
    """
    path = Path(path).expanduser()
    source = f"'{path}'"
    checkpoint = Checkpoint.open(path, _VAE_ROUTES)
    config = saved_config(path, InfinityStarVAE)
    config = config or infer_vae_config(checkpoint.layout, source)
    tokenizer = build_empty(InfinityStarVAE, config, source, checkpoint.layout)
    expected = tokenizer.state_dict()
    require_same_layout(_own_part(checkpoint.layout, expected), expected, source)
    fill(tokenizer, checkpoint, lambda state: _own_part(state, expected), dtype, device)
    return tokenizer.eval()


def check_pair(transformer: InfinityStarTransformer, tokenizer: InfinityStarVAE) -> None:
    """Checks that a transformer's fine tokens fill the tokenizer's latent cells, and mean as many pixels.

    Raises:
        CheckpointError: When they do not.
    """
    bits, channels = transformer.config.detail_bits, tokenizer.cell_channels
    if bits != channels:
        raise CheckpointError(
            f"The transformer draws {bits} bits a token, but the tokenizer's latents have {channels} "
            "channels; give the tokenizer it was trained with, infinitystar_videovae.pth."
        )
    wanted, pixels = transformer.config.pixels_per_cell, tokenizer.pixels_per_cell
    if wanted != pixels:
        raise CheckpointError(
            f"The transformer's cells are {wanted} pixels wide and the tokenizer's {pixels}; give the "
            "tokenizer it was trained with."
        )


convert = Conversion(
    "InfinityStarPipeline",
    load_transformer,
    load_vae,
    check_pair,
    (
        TextSide(
            "flan-t5-xl",
            load_text_encoder,
            lambda path, config: load_text_tokenizer(path, config.text_length),
            "d_model",
            lambda config: config.text_channels,
        ),
    ),
    transformer_options=("resolution",),
)
"""`resolution` is what the weights were trained for, as for `load_transformer`.

The text encoder is stored in float16, as the official code runs it; `dtype` is that of the blocks."""


def _transformer_from_object(
    state: Mapping[str, Tensor], model: Any, vae: Any, resolution: str = "480p", **overrides: Any
) -> InfinityStarTransformer:
    """A transformer on the weights of an official `Infinity` of InfinityStar.

    Raises:
        ValueError: When the resolution is unknown.
    """
    if resolution not in PUBLISHED:
        raise ValueError(f"Unknown resolution {resolution!r}; known are {', '.join(PUBLISHED)}.")
    overrides |= {"resolution": resolution, "pixels_per_cell": vae.pixels_per_cell}
    return transformer_from_state(state, "The model", **overrides)


OBJECTS = OfficialObjects(
    _transformer_from_object,
    lambda state, model: vae_from_state(state, "The video tokenizer"),
    ("resolution", "grids"),
)
