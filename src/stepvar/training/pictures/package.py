"""From training checkpoints to the folder that ships inside the package."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from stepvar.models.infinity.pipeline import InfinityPipeline
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.models.pipeline import NextScalePipeline
from stepvar.training.pictures.sizes import SIZES
from stepvar.training.transformer_trainer import EmbeddedModel

DEFAULTS = {"guidance_scale": 1.5, "temperature": 0.5, "top_k": 0, "top_p": 0.0}
"""Sampling settings of the shipped model, chosen by its scene score."""


def assemble(tokenizer_folder: Path, checkpoint: Path) -> InfinityPipeline:
    """A pipeline of the averaged weights of a run.

    Args:
        tokenizer_folder: What `InfinityVAE.save_pretrained` wrote.
        checkpoint: What `TransformerTrainer.save` wrote.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = EmbeddedModel(SIZES[state["settings"]["size"]])
    model.load_state_dict(state["average"])
    model.eval()
    visual = InfinityVAE.from_pretrained(tokenizer_folder, torch_dtype=torch.float32).eval()
    pipeline = InfinityPipeline(model.transformer, visual, model.text_encoder, model.words, **DEFAULTS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def package(pipeline: NextScalePipeline, folder: Path) -> int:
    """Writes a pipeline in bfloat16; returns its size in bytes.

    The folder is replaced only when the new one is whole.
    """
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        part.to(torch.bfloat16)
    fresh = folder.with_name(folder.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    # Where training kept its files is nobody else's business.
    pipeline.vae.register_to_config(_name_or_path="")
    # Files stay small enough to be moved about, also from a machine that hands out small files only.
    pipeline.save_pretrained(fresh, max_shard_size="15MB")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
