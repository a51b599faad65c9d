"""From training checkpoints to the folder that ships inside the package."""

from __future__ import annotations

from pathlib import Path

import torch

from stepvar.models.infinitystar.pipeline import InfinityStarPipeline
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.training.video.model import EmbeddedVideoModel

DEFAULTS = {
    "guidance_scale": 2.0,
    "guidance_threshold": 0.0,
    "temperature": 0.5,
    "picture_temperature": 0.5,
    "prompt_suffix": "",
    "marks_duration": False,
}
"""Sampling settings of the shipped model; its prompts are the scenes' own, without additions."""


def assemble(tokenizer_folder: Path, checkpoint: Path) -> InfinityStarPipeline:
    """A pipeline of the averaged weights of a run.

    Args:
        tokenizer_folder: What `InfinityStarVAE.save_pretrained` wrote.
        checkpoint: What `TransformerTrainer.save` wrote.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = EmbeddedVideoModel()
    model.load_state_dict(state["average"])
    visual = InfinityStarVAE.from_pretrained(tokenizer_folder, torch_dtype=torch.float32).eval()
    return join(model, visual)


def join(model: EmbeddedVideoModel, tokenizer: InfinityStarVAE) -> InfinityStarPipeline:
    """A pipeline of a trained model and its tokenizer."""
    model.eval()
    pipeline = InfinityStarPipeline(model.transformer, tokenizer, model.text_encoder, model.words, **DEFAULTS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
