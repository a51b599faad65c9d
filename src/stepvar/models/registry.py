"""The models, and where each keeps what commands ask of all of them. A new model is one entry."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.checkpoints.weights import Checkpoint, CheckpointError, name_architecture

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    Attributes:
        architecture: What `name_architecture` calls its official transformer.
        repository: The official code, owner/name: whose golden cases it runs.
        package: Its folder; `checkpoints.convert` in it converts its checkpoints.
        conformance: Module whose `run` runs its golden cases.
        routes: Where its training checkpoints keep the transformer.
    """

    architecture: str
    repository: str
    package: str
    conformance: str
    routes: tuple[tuple[str, ...], ...] = ()


MODELS = (
    ModelEntry(
        "an Infinity transformer",
        "FoundationVision/Infinity",
        "stepvar.models.infinity",
        "stepvar.conformance.infinity",
        (("trainer", "gpt_fsdp"), ("trainer", "gpt_wo_ddp")),
    ),
    ModelEntry(
        "an InfinityStar transformer",
        "FoundationVision/InfinityStar",
        "stepvar.models.infinitystar",
        "stepvar.conformance.infinitystar",
        (("trainer", "gpt_fsdp"), ("trainer", "gpt_wo_ddp"), ("state_dict",)),
    ),
    ModelEntry(
        "a VAR transformer",
        "FoundationVision/VAR",
        "stepvar.models.var",
        "stepvar.conformance.var",
        (("trainer", "var_wo_ddp"),),
    ),
    ModelEntry(
        "a HART transformer",
        "mit-han-lab/hart",
        "stepvar.models.hart",
        "stepvar.conformance.hart",
    ),
    ModelEntry(
        "a Switti transformer",
        "yandex-research/switti",
        "stepvar.models.switti",
        "stepvar.conformance.switti",
    ),
)

TEXT_ENCODERS = {
    "CLIPTextModel": "stepvar.models.switti.text",
    "Qwen2Model": "stepvar.models.hart.text",
    "Qwen2VLTextModel": "stepvar.models.hart.text",
    "T5EncoderModel": "stepvar.models.common.t5",
}
"""Module whose `load_text_encoder` loads a text encoder strictly, by its class."""


def convert(
    transformer_path: PathLike,
    tokenizer_path: PathLike,
    text_encoder: PathLike | Sequence[PathLike] | None,
    output_dir: PathLike,
    dtype: torch.dtype | None = None,
    **own: Any,
) -> Path:
    """Writes a folder that the model's pipeline loads; the model is told by the transformer's weights.

    Args:
        transformer_path: A published file, a folder of shards, a training checkpoint or a saved folder.
        tokenizer_path: The visual tokenizer it was trained with.
        text_encoder: Folder of its text encoder, or several where the model has several; None leaves them
            out.
        output_dir: The new folder.
        dtype: Number format of the transformer; None keeps the file's.
        own: Arguments that only this model's `convert` takes, such as VAR's `labels`.

    Returns:
        The new folder.

    Raises:
        CheckpointError: When an input cannot be used, the inputs do not fit each other, or the folder exists.
        ValueError: When the model has no use for an argument.
    """
    entry = model_of(transformer_path)
    run = import_module(f"{entry.package}.checkpoints").convert
    for name in own.keys() - inspect.signature(run).parameters.keys():
        raise ValueError(f"'{transformer_path}' is {entry.architecture}, which has no {name}: leave it out.")
    return run(transformer_path, tokenizer_path, text_encoder, output_dir, dtype, **own)


def model_of(transformer_path: PathLike) -> ModelEntry:
    """The model that a transformer belongs to, under the official names or ours.

    Raises:
        CheckpointError: When the file is missing, damaged, not a checkpoint or of none of them.
    """
    routes = [route for entry in MODELS for route in entry.routes]
    layout = Checkpoint.open(transformer_path, routes).layout
    found = name_architecture(layout)
    for entry in MODELS:
        if found is not None and found.startswith(entry.architecture):
            return entry
    found = found or f"nothing that stepvar knows (its first keys are {', '.join(list(layout)[:3])})"
    known = ", ".join(entry.architecture for entry in MODELS)
    raise CheckpointError(f"'{transformer_path}' holds {found}; a transformer is needed: {known}.")
