"""Trains the embedded model from nothing: `python -m stepvar.training.pictures.train`.

Tokenizer, encoded scenes, transformer, packaging; each stage resumes where it stopped. On a GPU
pass `--device cuda`: one run of the default budgets scaled by `--minutes 9` fits ten minutes.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.logging import RichHandler

from stepvar.embedded import MODELS
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.scenes import VOCABULARY
from stepvar.training.encoded_scenes import SHARD, FeatureStore, encode_scenes
from stepvar.training.pictures.package import assemble, package
from stepvar.training.pictures.sizes import SIZES
from stepvar.training.pictures.train_vae import TokenizerTrainer, TokenizerTraining
from stepvar.training.processes import show_encoding, train_in_processes
from stepvar.training.run import CHECKPOINT
from stepvar.training.text_pretraining import pretrained_text_encoder
from stepvar.training.transformer_trainer import (
    FROM_NOTHING,
    GOING_ON,
    EmbeddedModel,
    TransformerTrainer,
    TransformerTraining,
)

logger = logging.getLogger(__name__)

TOKENIZER_SHARE = 0.35
"""Share of the minutes that the tokenizer gets; the transformer has the rest."""

GPU_BATCH_FACTOR = 16
"""How many more pictures a step a GPU takes than a process on a CPU."""


def train(
    output: Annotated[Path, typer.Option(help="Checkpoints, logs and encoded scenes.")] = Path("runs"),
    minutes: Annotated[float, typer.Option(help="Budget of both trainings together.")] = 110.0,
    scenes: Annotated[int, typer.Option(help="Scenes to encode for the transformer.")] = 24_576,
    size: Annotated[str, typer.Option(help=f"Size of the model: {', '.join(SIZES)}.")] = "192",
    device: Annotated[str, typer.Option(help="torch device; auto takes CUDA where it is.")] = "auto",
    weights: Annotated[Path, typer.Option(help="Where the finished model goes.")] = MODELS["pictures"],
    start: Annotated[
        Path | None, typer.Option(help="A finished model whose transformer is trained on.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A finished tokenizer to use instead of training one.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes of the transformer's training on a CPU.")] = (
        os.cpu_count() or 1
    ),
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Fuse the blocks; needs a C++ compiler.")
    ] = shutil.which("g++") is not None,
) -> None:
    """Trains tokenizer and transformer, and writes the finished model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    if size not in SIZES:
        raise typer.BadParameter(f"There is no size {size!r}; there are {', '.join(SIZES)}.")
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    if tokenizer is None:
        tokenizer = _train_tokenizer(output / "tokenizer", TOKENIZER_SHARE * minutes, place, size)
        minutes *= 1.0 - TOKENIZER_SHARE
    visual = InfinityVAE.from_pretrained(tokenizer, torch_dtype=torch.float32).to(place).eval()
    _encode(visual, output / "features", scenes, SIZES[size].canvas)
    settings = TransformerTraining(
        minutes=minutes,
        size=size,
        curriculum=FROM_NOTHING if start is None else GOING_ON,
        batch_factor=1 if place == "cpu" else GPU_BATCH_FACTOR,
        compiled=compiled,
    )
    text = None if start is not None else pretrained_text_encoder(output / "text_encoder", VOCABULARY)
    run = _PictureRun(output, settings, place, start, text)
    train_in_processes(run, processes if place == "cpu" else 1, output)
    written = package(assemble(tokenizer, run.folder / CHECKPOINT), weights)
    logger.info("the model is in %s: %.1f MB", weights, written / 1e6)


def _train_tokenizer(folder: Path, minutes: float, device: str, size: str) -> Path:
    cores = os.cpu_count() or 1
    settings = TokenizerTraining(output=str(folder), minutes=minutes, device=device, threads=cores, size=size)
    if device != "cpu":
        workers = max(cores - 2, 1)
        settings = replace(settings, batch=GPU_BATCH_FACTOR * settings.batch, workers=workers)
    return TokenizerTrainer(settings).run()


def _encode(visual: InfinityVAE, folder: Path, scenes: int, canvas: int) -> None:
    shards = -(-scenes // SHARD)
    show_encoding(encode_scenes(visual, folder, shards, canvas), shards)


@dataclass(frozen=True)
class _PictureRun:
    """Builds the transformer's trainer, in every process that trains it."""

    output: Path
    settings: TransformerTraining
    device: str
    start: Path | None
    text: Path | None

    @property
    def folder(self) -> Path:
        return self.output / "transformer"

    def __call__(self) -> TransformerTrainer:
        torch.manual_seed(self.settings.seed)
        model = EmbeddedModel(SIZES[self.settings.size]).to(self.device)
        if self.start is not None:
            model.start_from(self.start)
        if self.text is not None:
            model.take_text_encoder(self.text)
        store = FeatureStore.load(self.output / "features")
        return TransformerTrainer(model, store, self.folder, self.settings)


if __name__ == "__main__":
    typer.run(train)
