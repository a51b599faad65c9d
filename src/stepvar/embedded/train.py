"""Trains the embedded model from nothing: `python -m stepvar.embedded.train`.

Tokenizer, encoded scenes, transformer, packaging; each stage resumes where it stopped. On a GPU
pass `--device cuda`: one run of the default budgets scaled by `--minutes 9` fits ten minutes.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stepvar.embedded import WEIGHTS
from stepvar.embedded.features import SHARD, FeatureStore, encode_scenes
from stepvar.embedded.package import assemble, package
from stepvar.embedded.train_tokenizer import TokenizerTrainer, TokenizerTraining
from stepvar.embedded.train_transformer import TransformerTrainer, TransformerTraining
from stepvar.models.infinity.tokenizer import InfinityTokenizer

logger = logging.getLogger(__name__)

TOKENIZER_SHARE = 0.35
"""Share of the minutes that the tokenizer gets; the transformer has the rest."""


def train(
    output: Annotated[Path, typer.Option(help="Checkpoints, logs and encoded scenes.")] = Path("runs"),
    minutes: Annotated[float, typer.Option(help="Budget of both trainings together.")] = 110.0,
    scenes: Annotated[int, typer.Option(help="Scenes to encode for the transformer.")] = 24_576,
    device: Annotated[str, typer.Option(help="torch device; auto takes CUDA where it is.")] = "auto",
    weights: Annotated[Path, typer.Option(help="Where the finished model goes.")] = WEIGHTS,
    start: Annotated[
        Path | None,
        typer.Option(
            help="A finished model to go on from: its tokenizer is kept, its transformer trained on."
        ),
    ] = None,
) -> None:
    """Trains tokenizer and transformer, and writes the finished model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    if start is None:
        tokenizer_folder = _train_tokenizer(output / "tokenizer", TOKENIZER_SHARE * minutes, place)
        minutes *= 1.0 - TOKENIZER_SHARE
    else:
        tokenizer_folder = start / "vae"
    visual = InfinityTokenizer.from_pretrained(tokenizer_folder, torch_dtype=torch.float32).to(place).eval()
    store = _encode(visual, output / "features", scenes)
    budget = TransformerTraining(minutes=minutes)
    trainer = TransformerTrainer(store, output / "transformer", budget, torch.device(place), start)
    _train_transformer(trainer)
    size = package(assemble(tokenizer_folder, trainer.checkpoint), weights)
    logger.info("the model is in %s: %.1f MB", weights, size / 1e6)


def _train_tokenizer(folder: Path, minutes: float, device: str) -> Path:
    settings = TokenizerTraining(
        output=str(folder), minutes=minutes, device=device, threads=os.cpu_count() or 1
    )
    return TokenizerTrainer(settings).run()


def _encode(visual: InfinityTokenizer, folder: Path, scenes: int) -> FeatureStore:
    shards = -(-scenes // SHARD)
    with Progress(TextColumn("encoding scenes"), BarColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("encode", total=shards)
        for done in encode_scenes(visual, folder, shards):
            progress.update(task, completed=done)
    return FeatureStore.load(folder)


def _train_transformer(trainer: TransformerTrainer) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("transformer", total=1.0)
        for entry in trainer.run():
            losses = " ".join(f"{value:.3f}" for value in entry["loss_per_scale"])
            progress.update(
                task,
                completed=trainer.progress,
                description=f"step {entry['step']}, {entry['pictures_per_second']} pictures/s, loss {losses}",
            )


if __name__ == "__main__":
    typer.run(train)
