"""Training in several processes, and progress bars."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stepvar.training.common.transformer_trainer import TransformerTrainer

MakeTrainer = Callable[[], TransformerTrainer]


def train_in_processes(make: MakeTrainer, processes: int, folder: Path) -> None:
    """Trains a transformer until its budget is spent.

    Args:
        make: Builds the trainer; it is sent to every process.
        processes: How many share the work; on a CPU one a core.
        folder: Where the processes find each other.
    """
    if processes <= 1:
        _train(make)
        return
    _keep_freed_memory()
    multiprocessing.spawn(_train_in_group, (make, processes, folder), processes)


def show_encoding(shards_done: Iterable[int], shards: int) -> None:
    """Encodes, and shows how many of the shards are done."""
    with Progress(TextColumn("encoding scenes"), BarColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("encode", total=shards)
        for done in shards_done:
            progress.update(task, completed=done)


def _train(make: MakeTrainer) -> None:
    trainer = make()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=trainer.rank > 0) as progress:
        task = progress.add_task("transformer", total=1.0)
        for entry in trainer.run():
            losses = " ".join(f"{value:.3f}" for value in entry["loss_per_scale"])
            description = f"step {trainer.step}, {entry['examples_per_second']} a second, loss {losses}"
            progress.update(task, completed=trainer.progress, description=description)


def _train_in_group(rank: int, make: MakeTrainer, processes: int, folder: Path) -> None:
    torch.set_num_threads(max((os.cpu_count() or 1) // processes, 1))
    store = distributed.FileStore(str(folder / f"group-{os.getppid()}"), processes)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    _train(make)
    distributed.destroy_process_group()


def _keep_freed_memory() -> None:
    """Lets the processes started from here reuse freed memory, in huge pages: a third less time a step.

    Otherwise every large tensor is mapped anew, and its pages are cleared one by one.
    """
    # One tunable and two older names: glibc hands no more than the first tunable on to grandchildren.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
