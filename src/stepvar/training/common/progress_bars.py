"""Progress bars of encoding and training."""

from __future__ import annotations

from collections.abc import Iterable

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stepvar.training.common.transformer_trainer import TransformerTrainer


def show_encoding(shards_done: Iterable[int], shards: int) -> None:
    """Encodes, and shows how many of the shards are done."""
    with Progress(TextColumn("encoding scenes"), BarColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("encode", total=shards)
        for done in shards_done:
            progress.update(task, completed=done)


def show_training(trainer: TransformerTrainer) -> None:
    """Trains until the budget is spent, and shows how much of it is; one process of a group shows it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not trainer.accelerator.is_main_process) as progress:
        task = progress.add_task("transformer", total=1.0)
        for entry in trainer.run():
            losses = " ".join(f"{value:.3f}" for value in entry["loss_per_scale"])
            description = f"step {trainer.step}, {entry['examples_per_second']} a second, loss {losses}"
            progress.update(task, completed=trainer.progress, description=description)
