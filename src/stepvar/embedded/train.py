"""Trains the embedded model from nothing: `python -m stepvar.embedded.train`.

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
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
import typer
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stepvar.embedded import WEIGHTS
from stepvar.embedded.architecture import SIZES
from stepvar.embedded.features import SHARD, FeatureStore, encode_scenes
from stepvar.embedded.package import assemble, package
from stepvar.embedded.train_tokenizer import TokenizerTrainer, TokenizerTraining
from stepvar.embedded.train_transformer import (
    CHECKPOINT,
    FROM_NOTHING,
    GOING_ON,
    TransformerTrainer,
    TransformerTraining,
)
from stepvar.models.infinity.tokenizer import InfinityTokenizer

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
    weights: Annotated[Path, typer.Option(help="Where the finished model goes.")] = WEIGHTS,
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
    visual = InfinityTokenizer.from_pretrained(tokenizer, torch_dtype=torch.float32).to(place).eval()
    _encode(visual, output / "features", scenes, SIZES[size].canvas)
    run = _TransformerRun(output, minutes, place, size, start, compiled)
    if place == "cpu" and processes > 1:
        _prepare_memory()
        multiprocessing.spawn(_train_in_group, (run, processes), processes)
    else:
        run.train()
    size = package(assemble(tokenizer, run.folder / CHECKPOINT), weights)
    logger.info("the model is in %s: %.1f MB", weights, size / 1e6)


def _train_tokenizer(folder: Path, minutes: float, device: str, size: str) -> Path:
    cores = os.cpu_count() or 1
    settings = TokenizerTraining(output=str(folder), minutes=minutes, device=device, threads=cores, size=size)
    if device != "cpu":
        workers = max(cores - 2, 1)
        settings = replace(settings, batch=GPU_BATCH_FACTOR * settings.batch, workers=workers)
    return TokenizerTrainer(settings).run()


def _encode(visual: InfinityTokenizer, folder: Path, scenes: int, canvas: int) -> None:
    shards = -(-scenes // SHARD)
    with Progress(TextColumn("encoding scenes"), BarColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("encode", total=shards)
        for done in encode_scenes(visual, folder, shards, canvas):
            progress.update(task, completed=done)


@dataclass(frozen=True)
class _TransformerRun:
    """What every process of the transformer's training needs to know."""

    output: Path
    minutes: float
    device: str
    size: str
    start: Path | None
    compiled: bool

    @property
    def folder(self) -> Path:
        return self.output / "transformer"

    def train(self) -> None:
        store = FeatureStore.load(self.output / "features")
        curriculum = FROM_NOTHING if self.start is None else GOING_ON
        factor = 1 if self.device == "cpu" else GPU_BATCH_FACTOR
        settings = TransformerTraining(
            minutes=self.minutes,
            size=self.size,
            curriculum=curriculum,
            batch_factor=factor,
            compiled=self.compiled,
        )
        trainer = TransformerTrainer(store, self.folder, settings, torch.device(self.device), self.start)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, disable=trainer.rank > 0) as progress:
            task = progress.add_task("transformer", total=1.0)
            for entry in trainer.run():
                losses = " ".join(f"{value:.3f}" for value in entry["loss_per_scale"])
                speed = f"{entry['pictures_per_second']} pictures/s"
                description = f"step {entry['step']}, {speed}, loss {losses}"
                progress.update(task, completed=trainer.progress, description=description)


def _prepare_memory() -> None:
    """Lets the processes started from here keep what they free, in huge pages: a third less time a step.

    Otherwise every large tensor is mapped anew, and its pages are cleared one by one.
    """
    # One tunable and two older names: glibc hands no more than the first tunable on to grandchildren.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))


def _train_in_group(rank: int, run: _TransformerRun, processes: int) -> None:
    torch.set_num_threads(max((os.cpu_count() or 1) // processes, 1))
    store = distributed.FileStore(str(run.output / f"group-{os.getppid()}"), processes)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    run.train()
    distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(train)
