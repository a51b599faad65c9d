"""Loading Switti's checkpoints, published or our own, and converting one into the other.

Source of the file forms: yandex-research/switti, models/switti.py (`SwittiHF`) and models/pipeline.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stepvar.models.folders import save_text_side, write_index
from stepvar.models.loading import CheckpointError, staged_folder
from stepvar.models.official import OfficialFormat
from stepvar.models.square_schedules import LEVELS
from stepvar.models.switti.official import DERIVED, MASK, infer_config, rename, to_official
from stepvar.models.switti.text import load_text_encoder, load_text_tokenizer
from stepvar.models.switti.tokenizer import SwittiTokenizer
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.vector_checkpoints import check_pair, load_vector_tokenizer

PathLike = str | os.PathLike[str]

FORMAT = OfficialFormat(
    SwittiTransformer,
    infer_config,
    to_official,
    rename,
    told_by=frozenset({LEVELS, MASK}),
    optional=lambda key: key in DERIVED,
)
"""How Switti's official transformers are read."""

_TOLD_BY_CONFIG = {"use_ar": "causal", "rope_theta": "rotary_theta", "rope_size": "rotary_extent"}
_TOLD_BY_BOTH = {
    "depth": "depth",
    "rope": "rotary",
    "use_swiglu_ffn": "gated_feed_forward",
    "use_crop_cond": "crop_condition",
}
"""Official configuration -> ours: what the weights do not tell, and what they tell too."""


def load_transformer(
    path: PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> SwittiTransformer:
    """Loads a transformer, official or our own; see `OfficialFormat.load`.

    What the weights do not tell comes from the official config.json in the folder, or beside the file;
    without one, from the mask of training in the file, and the published values.

    Raises:
        CheckpointError: As there, and when the configuration contradicts the weights.
    """
    official = _official_config(Path(path).expanduser())
    given = {ours: official[theirs] for theirs, ours in _TOLD_BY_CONFIG.items() if theirs in official}
    transformer = FORMAT.load(path, dtype, device, **given)
    for theirs, ours in _TOLD_BY_BOTH.items():
        if theirs in official and official[theirs] != transformer.config[ours]:
            raise CheckpointError(
                f"'{path}' contradicts itself: its config.json says {theirs} {official[theirs]}, its weights "
                f"say {transformer.config[ours]}; fetch both again."
            )
    return transformer


def _official_config(path: Path) -> Mapping[str, Any]:
    """The official configuration that belongs to a file or folder; empty when there is none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{file}' is not a readable configuration; fetch it again.") from error
    return config if isinstance(config, dict) and "_class_name" not in config else {}


def load_tokenizer(
    path: PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> SwittiTokenizer:
    """Loads a visual tokenizer, official or our own; see `load_vector_tokenizer`."""
    return load_vector_tokenizer(SwittiTokenizer, path, dtype, device)


def convert(
    transformer_path: PathLike,
    tokenizer_path: PathLike,
    text_encoder: PathLike | Sequence[PathLike] | None,
    output_dir: PathLike,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a folder that `SwittiPipeline.from_pretrained` loads.

    Nothing is half-written: the folder appears under its name when it is complete.

    Args:
        transformer_path: As for `load_transformer`.
        tokenizer_path: As for `load_tokenizer`.
        text_encoder: Folders of CLIP ViT-L and of CLIP bigG, in this order; None leaves both out.
        output_dir: The new folder.
        dtype: Number format of the transformer; None keeps the file's. The others keep their own.

    Returns:
        The new folder.

    Raises:
        CheckpointError: When an input cannot be used, the inputs do not fit each other, or the folder exists.
    """
    encoders = [text_encoder] if isinstance(text_encoder, (str, os.PathLike)) else list(text_encoder or ())
    if len(encoders) not in (0, 2):
        raise CheckpointError(
            f"Switti reads two text encoders, but {len(encoders)} was given: give the folders of "
            "clip-vit-large-patch14 and CLIP-ViT-bigG-14-laion2B-39B-b160k, in this order."
        )
    with staged_folder(output_dir) as folder:
        # Without a change of format nothing is read yet, so a wrong pair is refused at once.
        transformer = load_transformer(transformer_path)
        tokenizer = load_tokenizer(tokenizer_path)
        check_pair(transformer, tokenizer)
        components: dict[str, tuple[str | None, str | None]] = {
            "transformer": ("stepvar", SwittiTransformer.__name__),
            "vae": ("stepvar", SwittiTokenizer.__name__),
            **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"), (None, None)),
        }
        if encoders:
            components |= _save_text_encoders(encoders, transformer, folder)
        if dtype is not None:
            transformer = FORMAT.load(transformer_path, dtype, **_as_loaded(transformer))
        transformer.save_pretrained(folder / "transformer")
        tokenizer.save_pretrained(folder / "vae")
        write_index(folder, "SwittiPipeline", components)
    return Path(output_dir).expanduser()


def _as_loaded(transformer: SwittiTransformer) -> dict[str, Any]:
    return {ours: transformer.config[ours] for ours in _TOLD_BY_CONFIG.values()}


def _save_text_encoders(
    paths: Sequence[PathLike], transformer: SwittiTransformer, folder: Path
) -> dict[str, tuple[str, str]]:
    """Saves text encoders and tokenizers beside the other components; returns their entries in the index."""
    loaded = [(load_text_encoder(path), load_text_tokenizer(path)) for path in paths]
    widths = [encoder.config.hidden_size for encoder, _ in loaded]
    wanted = (transformer.config.text_channels, transformer.config.pooled_channels)
    if (sum(widths), widths[1]) != wanted:
        raise CheckpointError(
            f"The text encoders give {widths[0]} and {widths[1]} channels, but the transformer reads "
            f"{wanted[0] - wanted[1]} and {wanted[1]}; give those it was trained with, in this order."
        )
    components = {}
    for (encoder, tokenizer), suffix in zip(loaded, ("", "_2"), strict=True):
        components |= save_text_side(encoder, tokenizer, folder, suffix)
    return components
