"""Loading HART's checkpoints, published or our own, and converting one into the other.

Source of the file forms: mit-han-lab/hart, sample.py: a folder llm/ with config.json, weights and
ema_model.bin, and beside it a folder tokenizer/.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from stepvar.models.hart.official import DERIVED, ZERO_BIAS, infer_config, official_keys, to_official
from stepvar.models.hart.text import load_text_encoder, load_text_tokenizer
from stepvar.models.hart.tokenizer import HARTTokenizer
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.loading import (
    Checkpoint,
    CheckpointError,
    TensorMap,
    build_empty,
    fill,
    require_same_layout,
    saved_config,
    staged_folder,
)
from stepvar.models.vector_checkpoints import load_vector_tokenizer

PathLike = str | os.PathLike[str]

EMA_FILE = "ema_model.bin"
"""Averaged weights beside the plain ones: what the official scripts load unless told otherwise."""


def from_official(
    state: Mapping[str, Tensor],
    official: Mapping[str, Any] | None = None,
    source: str = "The state dict",
) -> TensorMap:
    """An official state dict, complete, under our keys; every name and shape is checked.

    Args:
        state: The official state dict.
        official: Contents of the official config.json; see `infer_config`.
        source: What errors call it.

    Raises:
        CheckpointError: When it belongs to another architecture, contradicts its configuration, or something
            is missing, unexpected or of another shape.
    """
    config = infer_config(state, official, source)
    names = _check_official(state, build_empty(HARTTransformer, config, source), source)
    return _rename(names, source, state)


def _check_official(state: Mapping[str, Tensor], transformer: HARTTransformer, source: str) -> dict[str, str]:
    """Official key -> our key, after checking an official state dict against a transformer."""
    expected = to_official(transformer.state_dict(), transformer.config)
    found = {key: value for key, value in state.items() if key not in DERIVED}
    # Whether the zeros were stored makes no difference.
    expected = {
        key: value
        for key, value in expected.items()
        if key not in DERIVED and (key in found or ZERO_BIAS not in key)
    }
    require_same_layout(found, expected, source)
    return {theirs: ours for ours, theirs in official_keys(transformer.config).items()}


def _rename(names: Mapping[str, str], source: str, state: Mapping[str, Tensor]) -> TensorMap:
    """A part of a checked official state dict under our keys, without the constant buffers."""
    for key, value in state.items():
        if key.endswith(ZERO_BIAS) and not value.is_meta and value.any():
            raise CheckpointError(f"{source} has a key bias ({key} is not zero), which HART has not.")
    return {names[key]: value for key, value in state.items() if key in names}


def official_config(path: Path) -> dict[str, Any] | None:
    """The official config.json in a folder or beside a file; None when there is none.

    Raises:
        CheckpointError: When it cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{file}' is not a readable configuration; fetch it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"'{file}' is not a readable configuration; fetch it again.")
    return config


def load_transformer(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    official: Mapping[str, Any] | None = None,
    averaged: bool = True,
) -> HARTTransformer:
    """Loads a transformer with its diffusion head; sizes are read off the weights where they tell.

    Args:
        path: A published folder llm/, a state dict (.bin, .safetensors), or a folder that `save_pretrained`
            wrote.
        dtype: Number format; None keeps the file's. A few small modules stay in float32 in any case.
        device: Where the weights go; None leaves them on the CPU, mapped from the file where possible.
        official: Contents of the official config.json; by default what lies in the folder or beside the
            file.
        averaged: Whether to take the averaged weights where a folder has both.

    Returns:
        The transformer in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, executable, not a HART transformer, or contradicts
            its configuration.
    """
    path = Path(path).expanduser()
    source = f"'{path}'"
    checkpoint = Checkpoint.open(_weights(path, averaged))
    config = saved_config(path, HARTTransformer.__name__)
    rename: Callable[[TensorMap], TensorMap] = dict
    if config is None:
        official = official_config(path) if official is None else official
        config = infer_config(_with_levels(checkpoint), official, source)
        transformer = build_empty(HARTTransformer, config, source)
        rename = partial(_rename, _check_official(checkpoint.layout, transformer, source), source)
    else:
        transformer = build_empty(HARTTransformer, config, source)
        require_same_layout(checkpoint.layout, transformer.state_dict(), source)
    fill(transformer, checkpoint, rename, dtype, device)
    return transformer.eval()


def _weights(path: Path, averaged: bool) -> Path:
    """The file or folder that holds the weights: a published folder may hold two kinds."""
    ema = path / EMA_FILE
    if not ema.is_file():
        return path
    if averaged:
        return ema
    plain = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
    found = next((file for file in plain if file.is_file()), None)
    if found is None and not any(path.glob("*.index.json")):
        raise CheckpointError(f"'{path}' has averaged weights only ({EMA_FILE}); load those.")
    return found or path


def _with_levels(checkpoint: Checkpoint) -> TensorMap:
    """The layout, with the one small buffer whose values tell the schedule."""
    layout = dict(checkpoint.layout)
    for shard in checkpoint.shards():
        layout |= {key: value for key, value in shard.items() if key in DERIVED and value.ndim == 2}
    return layout


_TOKENIZER_FIELDS = {"vocab_size": "codes", "z_channels": "channels", "ch": "base_channels"}
"""Official field -> ours, where the weights tell the same."""


def load_tokenizer(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> HARTTokenizer:
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
    tokenizer = load_vector_tokenizer(HARTTokenizer, path, dtype, device, prefix)
    if saved_config(path, HARTTokenizer.__name__) is None:
        told = official_config(path) or {}
        expected = {theirs: tokenizer.config[ours] for theirs, ours in _TOKENIZER_FIELDS.items()}
        expected |= {"quant_resi": 0.5, "quantizer_type": "var_hybrid"}
        for field, value in expected.items():
            if field in told and told[field] != value:
                raise CheckpointError(
                    f"{source} cannot be used: {field} is {told[field]!r} in its configuration, but "
                    f"{'its weights have' if field in _TOKENIZER_FIELDS else 'only'} {value!r}"
                    f"{'' if field in _TOKENIZER_FIELDS else ' is supported'}."
                )
    return tokenizer


def check_pair(transformer: HARTTransformer, tokenizer: HARTTokenizer) -> None:
    """Checks that a transformer's codes are the tokenizer's.

    Raises:
        CheckpointError: When codes, channels or pixels per token differ, or the tokenizer's refinements do
            not fit the number of scales.
    """
    ours, theirs = transformer.config, tokenizer.config
    wanted = (ours.codebook_size, ours.latent_channels, ours.pixels_per_token)
    offered = (theirs.codes, theirs.channels, tokenizer.stride)
    if wanted != offered:
        sides = [
            f"{codes} codes of {channels} channels for {pixels} x {pixels} pixels"
            for codes, channels, pixels in (wanted, offered)
        ]
        raise CheckpointError(
            f"The transformer draws {sides[0]}, but the tokenizer has {sides[1]}; "
            "give the tokenizer it was trained with."
        )
    if theirs.refine_by_scale and theirs.refinements < len(ours.sides) - 1:
        raise CheckpointError(
            f"The tokenizer has refinements for {theirs.refinements} scales, but the transformer has "
            f"{len(ours.sides)}; give the tokenizer it was trained with."
        )


def convert(
    transformer_path: PathLike,
    tokenizer_path: PathLike,
    text_encoder: PathLike | None,
    output_dir: PathLike,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a folder that `HARTPipeline.from_pretrained` loads.

    Nothing is half-written: the folder appears under its name when it is complete.

    Args:
        transformer_path: As for `load_transformer`; of a published folder the averaged weights.
        tokenizer_path: As for `load_tokenizer`.
        text_encoder: Folder of the Qwen2 language model and its tokenizer, e.g. Qwen2-VL-1.5B-Instruct; None
            leaves both out.
        output_dir: The new folder.
        dtype: Number format of the transformer; None keeps the file's. The tokenizer keeps its own.

    Returns:
        The new folder.

    Raises:
        CheckpointError: When an input cannot be used, the inputs do not fit each other, or the folder exists.
    """
    with staged_folder(output_dir) as folder:
        # Without a change of format nothing is read yet, so a wrong pair is refused at once.
        transformer = load_transformer(transformer_path)
        tokenizer = load_tokenizer(tokenizer_path)
        check_pair(transformer, tokenizer)
        components: dict[str, tuple[str | None, str | None]] = {
            "transformer": ("stepvar", HARTTransformer.__name__),
            "vae": ("stepvar", HARTTokenizer.__name__),
            "text_encoder": (None, None),
            "tokenizer": (None, None),
        }
        if text_encoder is not None:
            components |= _save_text_encoder(text_encoder, transformer, folder)
        if dtype is not None:
            transformer = load_transformer(transformer_path, dtype)
        transformer.save_pretrained(folder / "transformer")
        tokenizer.save_pretrained(folder / "vae")
        index = {"_class_name": "HARTPipeline", "_diffusers_version": diffusers.__version__, **components}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return Path(output_dir).expanduser()


def _save_text_encoder(
    path: PathLike, transformer: HARTTransformer, folder: Path
) -> dict[str, tuple[str, str]]:
    """Saves language model and tokenizer beside the other components; returns their entries in the index."""
    encoder, tokenizer = load_text_encoder(path), load_text_tokenizer(path)
    given, wanted = encoder.config.hidden_size, transformer.config.context_channels
    if given != wanted:
        raise CheckpointError(
            f"The text encoder '{path}' gives {given} channels, but the transformer reads {wanted}; "
            "give the one it was trained with, Qwen2-VL-1.5B-Instruct for the published model."
        )
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    # transformers 5 calls the generic class by a new name; the old one is known to all versions.
    name = type(tokenizer).__name__
    name = "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name
    return {"text_encoder": ("transformers", type(encoder).__name__), "tokenizer": ("transformers", name)}
