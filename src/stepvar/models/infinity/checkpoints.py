"""Loaders of Infinity's checkpoints, published or our own, and conversion of one into the other.

Source of the file forms: FoundationVision/Infinity, tools/run_infinity.py and models/bsq_vae/vae.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
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
from stepvar.models.common.official import ZERO_BIAS, KeyMap, from_official_keys
from stepvar.models.common.t5 import load_text_encoder, load_text_tokenizer
from stepvar.models.infinity.official import (
    DERIVED,
    VAES,
    infer_config,
    infer_vae_config,
    official_keys,
    refuse_others,
    to_official,
    with_one_scale_shape,
)
from stepvar.models.infinity.published import BUDGETS_BY_PIXELS
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE, convert_official_state

PathLike = str | os.PathLike[str]

_TRANSFORMER_ROUTES = (("trainer", "gpt_fsdp"), ("trainer", "gpt_wo_ddp"), ("vae",))
_VAE_ROUTES = (("vae",), ("trainer", "vae_local"), ("trainer", "gpt_fsdp"))
"""Where published files and training checkpoints keep the state dict; the last one is a wrong file, but
following it lets the error say what the file is."""


def from_official(state: Mapping[str, Tensor], source: str = "The state dict") -> TensorMap:
    """An official state dict, complete, under our keys; every name and shape is checked.

    Args:
        state: The official state dict.
        source: What errors call it.

    Raises:
        CheckpointError: When it belongs to another architecture, or something is missing, unexpected or of
            another shape.
    """
    config = infer_config(state, source)
    names = _check_official(state, build_empty(InfinityTransformer, config, source), source)
    return _rename(names, source, state)


def transformer_from_state(
    state: Mapping[str, Tensor], source: str = "The state dict", **overrides: Any
) -> InfinityTransformer:
    """A transformer with the weights of an official state dict, checked strictly.

    Args:
        overrides: Arguments of the constructor that the weights do not tell.

    Raises:
        CheckpointError: As for `from_official`.
    """
    transformer = build_empty(InfinityTransformer, infer_config(state, source) | overrides, source)
    transformer.load_state_dict(from_official(state, source), assign=True)
    return transformer.eval()


def vae_from_state(state: Mapping[str, Tensor], source: str = "The state dict") -> InfinityVAE:
    """A tokenizer with the weights of an official state dict, checked strictly.

    Raises:
        CheckpointError: When it belongs to another architecture, or something is missing, unexpected or of
            another shape.
    """
    refuse_others(state, VAES, source)
    part = _vae_part(state)
    tokenizer = build_empty(InfinityVAE, infer_vae_config(part, source), source)
    require_same_layout(part, tokenizer.state_dict(), source)
    tokenizer.load_state_dict(part, assign=True)
    return tokenizer.eval()


def load_official(transformer: InfinityTransformer, state: Mapping[str, Tensor]) -> None:
    """Loads an official state dict into an existing transformer, strictly.

    Only the unconditional text may be of another length, as in the official loader: a longer one is cut, a
    shorter one leaves the transformer's own rows after it.

    Raises:
        CheckpointError: As for `from_official`.
    """
    source, text = "The state dict", "cfg_uncond"
    state = dict(state)
    own = transformer.unconditional_text.detach()
    if text in state and state[text].shape[1:] == own.shape[1:]:
        given = state[text][: len(own)]
        state[text] = torch.cat([given.to(own), own[len(given) :]])
    infer_config(state, source)
    names = _check_official(state, transformer, source)
    transformer.load_state_dict(_rename(names, source, state))


def _check_official(state: Mapping[str, Tensor], transformer: InfinityTransformer, source: str) -> KeyMap:
    """The key map of a transformer, after checking an official state dict against it."""
    expected = to_official(transformer.state_dict(), transformer.config)
    found = {key: value for key, value in with_one_scale_shape(state).items() if key not in DERIVED}
    # Whether the zeros were stored makes no difference.
    expected = {key: value for key, value in expected.items() if key in found or ZERO_BIAS not in key}
    require_same_layout(found, expected, source)
    return official_keys(transformer.config.depth, transformer.config.block_chunks)


def _rename(names: KeyMap, source: str, state: Mapping[str, Tensor]) -> TensorMap:
    """A part of a checked official state dict under our keys, without the constant buffers."""
    return from_official_keys(with_one_scale_shape(state), names, source, "Infinity")


def load_transformer(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    budgets: Sequence[str] | None = None,
) -> InfinityTransformer:
    """Loads a transformer; its size is read off the weights.

    Args:
        path: A flat state dict (.pth, .safetensors), a training checkpoint, a folder of shards with an index,
            or a folder that `save_pretrained` wrote.
        dtype: Number format; None keeps the file's. The modules outside the blocks that the official
            inference runs in float32 are float32 in any case.
        device: Where the weights go; None is the CPU.
        budgets: Pixel budgets the weights were trained for; None takes them from a file name with, say,
            "512x512" in it, or else from the published size.

    Returns:
        The transformer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, or not an Infinity transformer.
    """
    path = Path(path).expanduser()
    source = f"'{path}'"
    checkpoint = Checkpoint.open(path, _TRANSFORMER_ROUTES)
    config = saved_config(path, InfinityTransformer)
    rename: Callable[[TensorMap], TensorMap] = dict
    if config is None:
        config = infer_config(checkpoint.layout, source)
        named = next((budget for pixels, budget in BUDGETS_BY_PIXELS.items() if pixels in path.name), None)
        config["budgets"] = list(budgets or ([named] if named else config["budgets"] or [])) or None
        transformer = build_empty(InfinityTransformer, config, source)
        rename = partial(_rename, _check_official(checkpoint.layout, transformer, source), source)
    else:
        transformer = build_saved(InfinityTransformer, checkpoint, config)
    fill(transformer, checkpoint, rename, dtype, device)
    return transformer.eval()


def load_vae(
    path: PathLike,
    vae_type: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> InfinityVAE:
    """Loads a visual tokenizer; its architecture is read off the weights.

    Args:
        path: A published file (infinity_vae_*.pth), a training checkpoint, or a folder that
            `save_pretrained` wrote.
        vae_type: Bits per latent position that the file must have; None accepts any.
        dtype: Number format; None keeps the file's.
        device: Where the weights go; None is the CPU.

    Returns:
        The tokenizer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, or not an Infinity tokenizer.
    """
    path = Path(path).expanduser()
    source = f"'{path}'"
    checkpoint = Checkpoint.open(path, _VAE_ROUTES)
    config = saved_config(path, InfinityVAE)
    if config is None:
        refuse_others(checkpoint.layout, VAES, source)
    layout = _vae_part(checkpoint.layout)
    config = config or infer_vae_config(layout, source)
    tokenizer = build_empty(InfinityVAE, config, source, layout)
    bits = tokenizer.config.codebook_dim
    if vae_type is not None and bits != vae_type:
        raise CheckpointError(
            f"{source} has {bits} bits per latent position, but vae_type {vae_type} was asked."
        )
    require_same_layout(layout, tokenizer.state_dict(), source)
    fill(tokenizer, checkpoint, _vae_part, dtype, device)
    return tokenizer.eval()


def _vae_part(state: Mapping[str, Tensor]) -> TensorMap:
    """Encoder and decoder under our keys; whatever else a file stores, the official loader ignores too."""
    converted = convert_official_state(state)[0]
    return {key: value for key, value in converted.items() if key.startswith(("encoder.", "decoder."))}


def check_pair(transformer: InfinityTransformer, tokenizer: InfinityVAE) -> None:
    """Checks that a transformer's tokens are the tokenizer's.

    Raises:
        CheckpointError: When bits or pixels per token differ.
    """
    wanted = (transformer.config.bits, transformer.config.pixels_per_token)
    offered = (tokenizer.bits_per_token, tokenizer.token_stride)
    if wanted == offered:
        return
    sides = [f"{bits} bits per token of {pixels} x {pixels} pixels" for bits, pixels in (wanted, offered)]
    kind = transformer.config.tokenizer_type
    remedy = f"give the tokenizer it was trained with, vae_type {kind}" if kind else "give another tokenizer"
    raise CheckpointError(f"The transformer draws {sides[0]}, but the tokenizer has {sides[1]}; {remedy}.")


convert = Conversion(
    "InfinityPipeline",
    load_transformer,
    load_vae,
    check_pair,
    (
        TextSide(
            "flan-t5-xl",
            load_text_encoder,
            lambda path, config: load_text_tokenizer(path),
            "d_model",
            lambda config: config.text_channels,
        ),
    ),
)
"""The text encoder is stored in float16, as the official code runs it."""


def _transformer_from_object(
    state: Mapping[str, Tensor], model: Any, vae: Any, **overrides: Any
) -> InfinityTransformer:
    """A transformer on the weights of an official `Infinity`."""
    return transformer_from_state(state, "The model", pixels_per_token=vae.token_stride, **overrides)


OBJECTS = OfficialObjects(
    _transformer_from_object,
    lambda state, model: vae_from_state(state, "The visual tokenizer"),
    ("budgets", "grids"),
)
