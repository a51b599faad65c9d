"""Loaders of VAR's checkpoints, published or our own, and conversion of one into the other.

Source of the file forms: FoundationVision/VAR, demo_sample.ipynb, trainer.py and utils/misc.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints.conversion import Conversion
from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.json_files import parse_json
from stepvar.checkpoints.official import OfficialFormat, OfficialObjects
from stepvar.models.common.official import ZERO_BIAS
from stepvar.models.common.square_schedules import LEVELS
from stepvar.models.common.vq_vae_checkpoints import check_pair, load_vq_vae, vae_from_state
from stepvar.models.var.official import DERIVED, infer_config, rename, to_official
from stepvar.models.var.transformer import VARTransformer
from stepvar.models.var.vae import VARVAE

PathLike = str | os.PathLike[str]

FORMAT = OfficialFormat(
    VARTransformer,
    infer_config,
    to_official,
    rename,
    told_by=frozenset({LEVELS}),
    optional=lambda key: key in DERIVED or key.endswith(ZERO_BIAS),
    routes=(("trainer", "var_wo_ddp"),),
)
"""How VAR's official transformers are read."""


def load_transformer(
    path: PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> VARTransformer:
    """Loads a transformer, official or our own; see `OfficialFormat.load`."""
    return FORMAT.load(path, dtype, device)


def load_vae(
    path: PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> VARVAE:
    """Loads a visual tokenizer, official or our own; see `load_vq_vae`."""
    return load_vq_vae(VARVAE, path, dtype, device)


def read_labels(path: PathLike, classes: int) -> list[str]:
    """Reads the names of classes: a JSON list, a JSON object by number, or a text with one name a line.

    Raises:
        CheckpointError: When the file cannot be read, or does not name every class.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"The label file '{path}' cannot be read ({error}).") from error
    try:
        content = parse_json(text)
    except (ValueError, RecursionError):
        content = [line.strip() for line in text.split("\n") if line.strip()]
    if isinstance(content, dict):
        content = [content.get(str(number)) for number in range(max(classes, len(content)))]
    if not isinstance(content, list) or len(content) != classes or not all(map(_is_name, content)):
        raise CheckpointError(
            f"The label file '{path}' does not name the {classes} classes of the model: "
            "write one name a line, or a JSON list of names."
        )
    return content


def _is_name(entry: object) -> bool:
    return isinstance(entry, str) and bool(entry.strip())


def _label_setting(transformer: VARTransformer, labels: PathLike | None = None) -> dict[str, list[str]]:
    """Names of the classes as an argument of the pipeline; None leaves them without names."""
    return {} if labels is None else {"labels": read_labels(labels, transformer.config.classes)}


convert = Conversion(
    "VARPipeline",
    load_transformer,
    load_vae,
    check_pair,
    setting_options=("labels",),
    settings=_label_setting,
)
"""`labels` is a file with the names of the classes, see `read_labels`; there is no text encoder."""


def _transformer_from_object(state: Mapping[str, Tensor], model: Any, vae: Any) -> VARTransformer:
    """A transformer on the weights of an official `VAR`, whose heads only its attention tells."""
    heads = getattr(model, "num_heads", None)
    sizes = {"heads": heads} if isinstance(heads, int) else {}
    return FORMAT.from_state(state, "The model", pixels_per_token=vae.stride, **sizes)


OBJECTS = OfficialObjects(
    _transformer_from_object,
    lambda state, model: vae_from_state(VARVAE, state, "The visual tokenizer"),
)
