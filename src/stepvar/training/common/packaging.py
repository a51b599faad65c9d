"""Packaging of a trained model: a pipeline folder in bfloat16, replaced only when the new one is complete."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import nn

from stepvar.models.pipeline import NextScalePipeline
from stepvar.training.common.prompted_model import PromptedModel

_AVERAGE = "model_1.safetensors"
"""Averaged weights in a checkpoint: the second module that a trainer prepares."""

_LARGEST_FILE = "15MB"
"""Small files can be moved to and from machines that limit the size of a file."""


def load_average(model: PromptedModel[Any], checkpoint: Path) -> None:
    """Loads the averaged weights of a run into a model.

    Args:
        model: Of the run's size.
        checkpoint: Folder as written by `TransformerTrainer.save`.
    """
    load_model(model, checkpoint / _AVERAGE)
    model.eval()


def package(pipeline: NextScalePipeline, folder: Path) -> int:
    """Writes a pipeline in bfloat16; returns its size in bytes."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            # All layers are stored in bfloat16; diffusers' own `to` warns of some kept in float32.
            nn.Module.to(part, torch.bfloat16)
    fresh = folder.with_name(folder.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    # Paths of the training machine do not belong into a package.
    pipeline.components["vae"].register_to_config(_name_or_path="")
    pipeline.save_pretrained(fresh, max_shard_size=_LARGEST_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
