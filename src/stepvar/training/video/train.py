"""Trains the embedded video model from nothing: `python -m stepvar.training.video.train`.

Tokenizer, encoded videos, transformer, packaging; each stage resumes where it stopped.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.logging import RichHandler

from stepvar.embedded import MODELS
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.scenes.moving.grammar import VOCABULARY
from stepvar.training.encoded_scenes import SHARD
from stepvar.training.pictures.package import package
from stepvar.training.processes import show_encoding, train_in_processes
from stepvar.training.run import CHECKPOINT
from stepvar.training.text_pretraining import pretrained_text_encoder
from stepvar.training.transformer_trainer import Batch, Phase, TransformerTrainer, TransformerTraining
from stepvar.training.video.encoded_videos import encode_videos, load_videos
from stepvar.training.video.model import EmbeddedVideoModel
from stepvar.training.video.package import assemble
from stepvar.training.video.text_questions import VIDEOS
from stepvar.training.video.train_vae import VideoTokenizerTrainer, VideoTokenizerTraining

logger = logging.getLogger(__name__)

TOKENIZER_SHARE = 0.25
"""Share of the minutes that the tokenizer gets; the transformer has the rest."""

OBJECT_WEIGHT = 12.0
"""Objects are a tenth of a frame, and their outlines are what the model learns last."""

COARSE, FINE, WHOLE = Batch(5, 16), Batch(6, 10, share=0.4), Batch(6, 6)
STILL = Batch(6, 24, latent_frames=1)
"""What stands in a video is settled in its first frame, a third of the tokens."""

FROM_NOTHING = (
    Phase(0.2, (Batch(4, 24),)),
    Phase(0.15, (STILL, COARSE)),
    Phase(0.5, (STILL, FINE, COARSE)),
    Phase(0.15, (WHOLE, STILL, COARSE)),
)
GOING_ON = (Phase(0.85, (STILL, FINE, COARSE)), Phase(0.15, (WHOLE, STILL, COARSE)))
"""For a model that knows the coarse scales already."""


def train(
    output: Annotated[Path, typer.Option(help="Checkpoints, logs and encoded videos.")] = Path("runs/video"),
    minutes: Annotated[float, typer.Option(help="Budget of both trainings together.")] = 150.0,
    videos: Annotated[int, typer.Option(help="Videos to encode for the transformer.")] = 8_192,
    weights: Annotated[Path, typer.Option(help="Where the finished model goes.")] = MODELS["video"],
    start: Annotated[
        Path | None, typer.Option(help="A finished model whose transformer is trained on.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A finished tokenizer to use instead of training one.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes of the transformer's training.")] = (
        os.cpu_count() or 1
    ),
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Fuse the blocks; needs a C++ compiler.")
    ] = shutil.which("g++") is not None,
) -> None:
    """Trains tokenizer and transformer, and writes the finished model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    if tokenizer is None:
        budget = TOKENIZER_SHARE * minutes
        visual = VideoTokenizerTraining(
            output=str(output / "tokenizer"), minutes=budget, threads=os.cpu_count() or 1
        )
        tokenizer = VideoTokenizerTrainer(visual).run()
        minutes -= budget
    finished = InfinityStarVAE.from_pretrained(tokenizer, torch_dtype=torch.float32).eval()
    shards = -(-videos // SHARD)
    show_encoding(encode_videos(finished, output / "features", shards), shards)
    curriculum = FROM_NOTHING if start is None else GOING_ON
    text = None if start is not None else pretrained_text_encoder(output / "text_encoder", VOCABULARY, VIDEOS)
    settings = TransformerTraining(minutes, curriculum, object_weight=OBJECT_WEIGHT, compiled=compiled)
    run = _VideoRun(output, settings, start, text)
    train_in_processes(run, processes, output)
    written = package(assemble(tokenizer, run.folder / CHECKPOINT), weights)
    logger.info("the model is in %s: %.1f MB", weights, written / 1e6)


@dataclass(frozen=True)
class _VideoRun:
    """Builds the transformer's trainer, in every process that trains it."""

    output: Path
    settings: TransformerTraining
    start: Path | None
    text: Path | None

    @property
    def folder(self) -> Path:
        return self.output / "transformer"

    def __call__(self) -> TransformerTrainer:
        torch.manual_seed(self.settings.seed)
        model = EmbeddedVideoModel()
        if self.start is not None:
            model.start_from(self.start)
        if self.text is not None:
            model.take_text_encoder(self.text)
        return TransformerTrainer(model, load_videos(self.output / "features"), self.folder, self.settings)


if __name__ == "__main__":
    typer.run(train)
