"""Loaders of HART's checkpoints, published or our own, and conversion of one into the other.

Source of the file forms: mit-han-lab/hart, sample.py: a folder llm/ with config.json, weights and
ema_model.bin, and beside it a folder tokenizer/.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints.conversion import Conversion, TextSide
from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.json_files import read_json
from stepvar.checkpoints.layouts import saved_config
from stepvar.checkpoints.official import OfficialFormat, OfficialObjects
from stepvar.checkpoints.weights import Checkpoint
from stepvar.models.common import vq_vae_checkpoints as vector_checkpoints
from stepvar.models.common.square_schedules import LEVELS
from stepvar.models.hart.official import infer_config, is_optional, rename, to_official
from stepvar.models.hart.text import load_text_encoder, load_text_tokenizer
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.hart.vae import HARTVAE

PathLike = str | os.PathLike[str]

EMA_FILE = "ema_model.bin"
"""Averaged weights beside the plain ones: what the official scripts load by default."""


def official_format(official: Mapping[str, Any] | None) -> OfficialFormat[HARTTransformer]:
    """How HART's transformers are stored, given the contents of the official config.json, if any."""
    return OfficialFormat(
        HARTTransformer,
        lambda state, source: infer_config(state, official, source),
        to_official,
        rename,
        told_by=frozenset({LEVELS}),
        optional=is_optional,
    )


def official_config(path: Path) -> dict[str, Any] | None:
    """The official config.json in a folder or beside a file; None when there is none.

    Raises:
        CheckpointError: When it cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return None
    return read_json(file)


def load_transformer(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    official: Mapping[str, Any] | None = None,
    averaged: bool = True,
    pixels_per_token: int = 16,
) -> HARTTransformer:
    """Loads a transformer with its diffusion head; sizes are read off the weights where they tell.

    Args:
        path: A published folder llm/, a state dict (.bin, .safetensors), or a folder that `save_pretrained`
            wrote.
        dtype: Number format; None keeps the file's. A few small modules stay in float32 in any case.
        device: Where the weights go; None is the CPU.
        official: Contents of the official config.json; by default what lies in the folder or beside the
            file.
        averaged: Whether to take the averaged weights where a folder has both.
        pixels_per_token: Stride of the visual tokenizer, which an official file does not tell.

    Returns:
        The transformer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, not a HART transformer, or contradicts
            its configuration.
    """
    path = Path(path).expanduser()
    ema = path / EMA_FILE
    settings = official_config(path) if official is None else official
    weights = ema if averaged and ema.is_file() else path
    return official_format(settings).load(weights, dtype, device, pixels_per_token=pixels_per_token)


_VAE_FIELDS = {"vocab_size": "codes", "z_channels": "channels", "ch": "base_channels"}
"""Official field -> ours, where the weights tell the same."""


def load_vae(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> HARTVAE:
    """Loads a visual tokenizer; its architecture is read off the weights.

    Args:
        path: A published folder tokenizer/, a state dict, or a folder that `save_pretrained` wrote.
        dtype: Number format of the networks; None keeps the file's. The quantiser is float32 in any case.
        device: Where the weights go; None is the CPU.

    Returns:
        The tokenizer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, not such a tokenizer, or contradicts
            the configuration beside it.
    """
    path = Path(path).expanduser()
    source = f"'{path}'"
    prefix = "vae." if any(key.startswith("vae.") for key in Checkpoint.open(path).layout) else ""
    tokenizer = vector_checkpoints.load_vq_vae(HARTVAE, path, dtype, device, prefix)
    if saved_config(path, HARTVAE) is None:
        settings = official_config(path) or {}
        expected = {theirs: tokenizer.config[ours] for theirs, ours in _VAE_FIELDS.items()}
        expected |= {"quant_resi": 0.5, "quantizer_type": "var_hybrid"}
        for field, value in expected.items():
            if field in settings and settings[field] != value:
                raise CheckpointError(
                    f"{source} cannot be used: {field} is {settings[field]!r} in its configuration, but "
                    f"{'its weights have' if field in _VAE_FIELDS else 'only'} {value!r}"
                    f"{'' if field in _VAE_FIELDS else ' is supported'}."
                )
    return tokenizer


def check_pair(transformer: HARTTransformer, tokenizer: HARTVAE) -> None:
    """Checks that a transformer's codes are the tokenizer's.

    Raises:
        CheckpointError: When codes, channels or pixels per token differ, or the tokenizer's refinements do
            not fit the number of scales.
    """
    vector_checkpoints.check_pair(transformer, tokenizer, "codebook_size", "latent_channels")
    ours, theirs = transformer.config, tokenizer.config
    if theirs.refine_by_scale and theirs.refinements < len(ours.sides) - 1:
        raise CheckpointError(
            f"The tokenizer has refinements for {theirs.refinements} scales, but the transformer has "
            f"{len(ours.sides)}; give the tokenizer it was trained with."
        )


convert = Conversion(
    "HARTPipeline",
    load_transformer,
    load_vae,
    check_pair,
    (
        TextSide(
            "Qwen2-VL-1.5B-Instruct",
            load_text_encoder,
            lambda path, config: load_text_tokenizer(path),
            "hidden_size",
            lambda config: config.context_channels,
        ),
    ),
    options_from_vae=lambda vae: {"pixels_per_token": vae.stride},
)
"""Of a published folder llm/ it takes the averaged weights."""


def _transformer_from_object(state: Mapping[str, Tensor], model: Any, vae: Any) -> HARTTransformer:
    """A transformer on the weights of an official `HARTForT2I`, with what its configuration says."""
    config = getattr(model, "config", None)
    official = config if isinstance(config, Mapping) else None
    if config is not None and hasattr(config, "to_dict"):
        official = config.to_dict()
    return official_format(official).from_state(state, "The model", pixels_per_token=vae.stride)


def _vae_from_object(state: Mapping[str, Tensor], model: Any) -> HARTVAE:
    """A visual tokenizer on the weights of an official `HARTAutoEncoder`, or of the `vae` in it."""
    part = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
    return vector_checkpoints.vae_from_state(HARTVAE, part or state, "The visual tokenizer")


OBJECTS = OfficialObjects(_transformer_from_object, _vae_from_object)
