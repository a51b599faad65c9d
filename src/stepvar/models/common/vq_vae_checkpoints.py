"""Official checkpoints of the visual tokenizer that VAR, Switti and HART share, and their keys.

Source of the file forms: FoundationVision/VAR, models/vqvae.py and utils/misc.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.layouts import build_empty, build_saved, fill, require_same_layout, saved_config
from stepvar.checkpoints.weights import Checkpoint, TensorMap
from stepvar.models.common.architectures import name_architecture
from stepvar.models.common.official import count_numbers
from stepvar.models.common.vector_quantizer import official_quantizer_keys
from stepvar.models.common.vq_vae import VectorQuantizedVAE

Tokenizer = TypeVar("Tokenizer", bound=VectorQuantizedVAE)

STATISTICS = "quantize.ema_vocab_hit_SV"
"""How often codes were hit in training: depends on the schedule, and is nothing the model needs."""

VAE_ROUTES = (("trainer", "vae_local"),)
"""Where a training checkpoint keeps the tokenizer."""


def official_vae_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Our key -> official key where the two differ."""
    return official_quantizer_keys(config["refinements"], config["refine_by_scale"])


def vae_to_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorMap:
    """A state dict of ours under the official keys."""
    names = official_vae_keys(config)
    return {names.get(key, key): value for key, value in state.items()}


def vae_from_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorMap:
    """An official state dict, or a part of one, under our keys, without its statistics."""
    names = {theirs: ours for ours, theirs in official_vae_keys(config).items()}
    return {names.get(key, key): value for key, value in state.items() if key != STATISTICS}


def infer_vae_config(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Reads the sizes of a tokenizer off an official state dict.

    Raises:
        CheckpointError: When it belongs to another architecture, or its sizes cannot be read.
    """
    if "quantize.embedding.weight" not in state or "quant_conv.weight" not in state:
        found = name_architecture(state)
        raise CheckpointError(
            f"{source} is {found or 'of an unknown architecture'}, "
            "not a visual tokenizer with a codebook; give the file of the tokenizer."
        )
    try:
        codes, channels = state["quantize.embedding.weight"].shape
        base = state["encoder.conv_in.weight"].shape[0]
        levels = count_numbers(state, r"encoder\.down\.(\d+)\.")
        multipliers = [
            state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] // base for level in range(levels)
        ]
        shared = count_numbers(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
        single = count_numbers(state, r"quantize\.quant_resi\.(\d+)\.")
        one = "quantize.quant_resi.qresi.weight" in state
        return {
            "codes": codes,
            "channels": channels,
            "base_channels": base,
            "multipliers": multipliers,
            "encoder_blocks": count_numbers(state, r"encoder\.down\.0\.block\.(\d+)\."),
            "decoder_blocks": count_numbers(state, r"decoder\.up\.0\.block\.(\d+)\."),
            "kernel": state["quant_conv.weight"].shape[-1],
            "refinements": 1 if one else shared or single,
            "refine_by_scale": not one and not shared and single > 0,
        }
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{source} is no complete visual tokenizer: its sizes cannot be read ({error!r})."
        ) from error


def vae_from_state(
    kind: type[Tokenizer], state: Mapping[str, Tensor], source: str = "The state dict", **overrides: Any
) -> Tokenizer:
    """A tokenizer with the weights of an official state dict, checked strictly.

    Args:
        overrides: Arguments of the constructor that the weights do not tell.

    Raises:
        CheckpointError: As for `load_vq_vae`.
    """
    tokenizer = _empty_for(kind, state, source, overrides)
    tokenizer.load_state_dict(vae_from_official(state, tokenizer.config), assign=True)
    return tokenizer.eval()


def _empty_for(
    kind: type[Tokenizer], state: Mapping[str, Tensor], source: str, overrides: Mapping[str, Any] = {}
) -> Tokenizer:
    """A tokenizer on the meta device that an official state dict fits."""
    tokenizer = build_empty(kind, {**infer_vae_config(state, source), **overrides}, source)
    found = {key: value for key, value in state.items() if key != STATISTICS}
    # Compared under the official keys, so that errors use the names of the file.
    require_same_layout(found, vae_to_official(tokenizer.state_dict(), tokenizer.config), source)
    return tokenizer


def load_vq_vae(
    kind: type[Tokenizer],
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prefix: str = "",
) -> Tokenizer:
    """Loads a visual tokenizer; its architecture is read off the weights.

    Args:
        kind: The model's tokenizer class.
        path: A published file, a training checkpoint, or a folder that `save_pretrained` wrote.
        dtype: Number format of the networks; None keeps the file's. The quantiser is float32 in any case.
        device: Where the weights go; None is the CPU.
        prefix: What the tokenizer's keys begin with in a published file, "vae." for example; keys that
            begin with something else belong to another network and are left out.

    Returns:
        The tokenizer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, or not such a tokenizer.
    """
    path = Path(path).expanduser()
    source = f"'{path}'"
    checkpoint = Checkpoint.open(path, VAE_ROUTES)
    config = saved_config(path, kind)
    if config is not None:
        tokenizer = build_saved(kind, checkpoint, config)
        fill(tokenizer, checkpoint, dtype=dtype, device=device)
        return tokenizer.eval()

    def part(state: Mapping[str, Tensor]) -> TensorMap:
        return {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}

    # A wrong file is named by all of its keys.
    tokenizer = _empty_for(kind, part(checkpoint.layout) or checkpoint.layout, source)
    fill(
        tokenizer,
        checkpoint,
        lambda state: vae_from_official(part(state), tokenizer.config),
        dtype,
        device,
    )
    return tokenizer.eval()


def check_pair(
    transformer: ModelMixin, tokenizer: VectorQuantizedVAE, codes: str = "codes", channels: str = "channels"
) -> None:
    """Checks that a transformer's codes are the tokenizer's.

    Args:
        codes, channels: What the transformer's configuration calls the tokenizer's.

    Raises:
        CheckpointError: When codes, channels or pixels per token differ.
    """
    ours, theirs = transformer.config, tokenizer.config
    wanted = (ours[codes], ours[channels], ours.pixels_per_token)
    offered = (theirs.codes, theirs.channels, tokenizer.stride)
    if wanted != offered:
        sides = [
            f"{count} codes of {width} channels for {pixels} x {pixels} pixels"
            for count, width, pixels in (wanted, offered)
        ]
        raise CheckpointError(
            f"The transformer draws {sides[0]}, but the tokenizer has {sides[1]}; "
            "give the tokenizer it was trained with."
        )
