"""Loaders of Switti's checkpoints, published or our own, and conversion of one into the other.

Source of the file forms: yandex-research/switti, models/switti.py (`SwittiHF`) and models/pipeline.py.
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
from stepvar.checkpoints.official import OfficialFormat, OfficialObjects
from stepvar.models.common.square_schedules import LEVELS
from stepvar.models.common.vq_vae_checkpoints import check_pair, load_vq_vae, vae_from_state
from stepvar.models.switti.official import DERIVED, MASK, infer_config, rename, to_official
from stepvar.models.switti.text import load_text_encoder, load_text_tokenizer
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.switti.vae import SwittiVAE

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
    config = read_json(file) if file.is_file() else {}
    return {} if "_class_name" in config else config


def load_vae(
    path: PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> SwittiVAE:
    """Loads a visual tokenizer, official or our own; see `load_vq_vae`."""
    return load_vq_vae(SwittiVAE, path, dtype, device)


convert = Conversion(
    "SwittiPipeline",
    load_transformer,
    load_vae,
    check_pair,
    (
        TextSide(
            "clip-vit-large-patch14",
            load_text_encoder,
            lambda path, config: load_text_tokenizer(path),
            "hidden_size",
            lambda config: config.text_channels - config.pooled_channels,
        ),
        TextSide(
            "CLIP-ViT-bigG-14-laion2B-39B-b160k",
            load_text_encoder,
            lambda path, config: load_text_tokenizer(path),
            "hidden_size",
            lambda config: config.pooled_channels,
        ),
    ),
)


def _transformer_from_object(state: Mapping[str, Tensor], model: Any, vae: Any) -> SwittiTransformer:
    """A transformer on the weights of an official `Switti`, whose attributes tell what weights do not."""
    names = {**_TOLD_BY_CONFIG, "num_heads": "heads"}
    attributes = {name: getattr(model, name, None) for name in names}
    sizes = {names[name]: value for name, value in attributes.items() if isinstance(value, (int, float))}
    return FORMAT.from_state(state, "The model", pixels_per_token=vae.stride, **sizes)


OBJECTS = OfficialObjects(
    _transformer_from_object,
    lambda state, model: vae_from_state(SwittiVAE, state, "The visual tokenizer"),
)
