"""Runs that fill a folder with pictures: by one process, in shards, or on a Ray cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from stepvar.cli import display
from stepvar.cli.errors import InputError
from stepvar.cli.interrupts import CleanupOnInterrupt
from stepvar.cli.models import (
    check_options,
    check_prompts,
    note_other_aspect,
    open_pipeline,
    quiet_libraries,
)
from stepvar.cli.options import ModelOptions, PlanOptions, SamplingOptions, SizeOptions

if TYPE_CHECKING:
    from stepvar.evaluation.benchmark_run import BenchmarkRun, RunStatus
    from stepvar.evaluation.benchmark_task import Task
    from stepvar.evaluation.ray_run import Prepared
    from stepvar.evaluation.run_folder import Shard

_ANY_CLUSTER = "any"
"""Value of a bare --ray."""

_SCHEDULERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""By which torchrun and Slurm tell a process its number, how many there are, its number on the machine."""


@dataclass(frozen=True)
class WorkOptions:
    """Which process draws what."""

    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto",
            help="Part I of N, for processes that share the folder; auto takes both from torchrun or Slurm.",
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Draw on a Ray cluster: HOST:PORT, or local for one of this machine. Default: that of "
            "RAY_ADDRESS, else local.",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="With --ray: workers. Default: one a GPU, else one a CPU."),
    ] = None
    worker_cpus: Annotated[
        int | None, typer.Option(min=1, max=1024, help="With --ray: CPUs of each worker. Default: 1.")
    ] = None

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        values = {
            "--shard": self.shard,
            "--ray": self.ray,
            "--workers": self.workers,
            "--worker-cpus": self.worker_cpus,
        }
        return [name for name, value in values.items() if value is not None]

    def part(self) -> Shard:
        """Which part of the prompts this process takes.

        Raises:
            InputError: When options contradict each other, or one is not understood.
        """
        from stepvar.evaluation.run_folder import Shard

        if self.ray is None and (self.workers or self.worker_cpus):
            raise InputError(f"{self.given[-1]} is for --ray: give both, or leave it out.")
        if self.shard is None:
            return Shard()
        if self.ray is not None:
            raise InputError("--ray shares the work itself: leave --shard out.")
        if self.shard.strip() == "auto":
            number, count, _ = _scheduled()
            return Shard(number + 1, count)
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(
                f"--shard {self.shard!r} is not understood: write I/N, such as 1/4 to 4/4, or auto."
            )
        return Shard(int(match[1]), int(match[2]))

    def placed(self, model: ModelOptions) -> ModelOptions:
        """The model on this process's own GPU, where --shard auto sees several and none was named."""
        if self.shard is None or self.shard.strip() != "auto" or model.device not in ("auto", "cuda"):
            return model
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return model if gpus < 2 else replace(model, device=f"cuda:{_scheduled()[2] % gpus}")

    def address(self) -> str | None:
        """Of the cluster, as `ray_cluster.joined` takes it."""
        return None if self.ray == _ANY_CLUSTER else self.ray


def _scheduled() -> tuple[int, int, int]:
    """This process's number, how many there are, and its number on its machine, as a scheduler says.

    Raises:
        InputError: When none does.
    """
    for names in _SCHEDULERS:
        texts = [os.environ.get(name) for name in names]
        if texts[0] is None or texts[1] is None:
            continue
        shown = f"{names[0]}={texts[0]} and {names[1]}={texts[1]}"
        numbers = [int(text) if text and re.fullmatch(r"\d{1,6}", text) else None for text in texts]
        number, count, local = numbers
        if number is None or count is None or number >= count:
            raise InputError(f"--shard auto: {shown} do not number a process: use --shard I/N.")
        return number, count, number if local is None else local
    raise InputError(
        "--shard auto finds no number of this process: start it by torchrun or srun (RANK and WORLD_SIZE, or "
        "SLURM_PROCID and SLURM_NTASKS), or use --shard I/N."
    )


class RunCommand(TyperCommand):
    """A command whose --ray may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Gives a bare --ray its value: typer knows no options that may have one."""
        return super().parse_args(ctx, _with_ray_value(args))


def _with_ray_value(args: Sequence[str]) -> list[str]:
    from stepvar.evaluation.ray_cluster import is_address

    given: list[str] = []
    for place, argument in enumerate(args):
        given.append(argument)
        if argument == "--":
            return [*given, *args[place + 1 :]]
        following = args[place + 1] if place + 1 < len(args) else ""
        # Whatever is no address is an argument of its own.
        if argument == "--ray" and not is_address(following):
            given.append(_ANY_CLUSTER)
    return given


@dataclass(frozen=True)
class RunRequest:
    """A run as the command line asks for it: it can be opened here, or sent to a worker that opens it.

    Attributes:
        task: What is drawn.
        folder: Of the run.
        model, plan, size, sampling: As given.
        others: Further arguments of the pipeline's call.
        follows_model: Whether videos are drawn where the model draws videos.
    """

    task: Task
    folder: Path
    model: ModelOptions
    plan: PlanOptions
    size: SizeOptions
    sampling: SamplingOptions
    others: Mapping[str, Any] = field(default_factory=dict)
    follows_model: bool = False

    def __call__(self, device: str) -> BenchmarkRun:
        """Opens the run in a worker, which has one GPU of its own or none."""
        return replace(self, model=replace(self.model, device=device)).open()

    def for_workers(self) -> RunRequest:
        """The same, whatever folder a worker is started in."""
        model = self.model
        parts = [_absolute(part) for part in model.text_encoder or ()]
        found = replace(
            model,
            model=None if model.model is None else _absolute(model.model),
            vae=None if model.vae is None else _absolute(model.vae),
            text_encoder=parts or None,
        )
        return replace(self, folder=self.folder.resolve(), model=found)

    def settings(self) -> dict[str, Any]:
        """Arguments of the pipeline's call.

        Raises:
            InputError: When an option is not understood.
        """
        return {**self.size.arguments(), **self.sampling.arguments(), **self.others}

    def open(self) -> BenchmarkRun:
        """Opens the model and checks everything.

        Raises:
            InputError, ValueError: Saying what is wrong.
        """
        from stepvar.evaluation.benchmark_run import BenchmarkRun

        with quiet_libraries():
            settings = self.settings()
            pipeline = open_pipeline(self.model)
            check_options(pipeline, settings)
            videos = self.follows_model and pipeline.draws_videos and settings.get("seconds") != 0
            task = self.task.of_videos() if videos else self.task
            run = BenchmarkRun(pipeline, task, self.folder, self.plan.method(), settings)
            if not task.benchmark.video:
                note_other_aspect(pipeline, self.size.arguments())
                check_prompts(pipeline, self.sampling.texts([item.prompt for item in task.items]))
        return run


def _absolute(path: Path) -> Path:
    """A path of this machine in full; what is none, such as a repository of the hub, as it is."""
    expanded = path.expanduser()
    return expanded.resolve() if expanded.exists() else path


def carry_out(request: RunRequest, work: WorkOptions, batch: int, json: bool) -> None:
    """Draws what a run lacks, and prints what came of it.

    Raises:
        InputError, ValueError: Saying what is wrong.
    """
    # What is wrong with options is said before anything is started.
    shard, _, _ = work.part(), request.settings(), request.plan.method()
    if work.ray is not None:
        _draw_on_ray(request, work, batch, json)
        return
    run = replace(request, model=work.placed(request.model)).open()
    mine = run.task.files_of(shard.of(run.task.batches(run.at_a_time(batch))))
    with quiet_libraries(), CleanupOnInterrupt(), _progress(len(mine)) as move:
        status = run.generate(shard, batch, None if move is None else lambda done: move(float(done), ""))
    others = "other shards are" if shard.count > 1 else "the run is"
    _print(status, run.task, run.identity, others, json)


def _progress(pictures: int) -> Any:
    return display.progress_bar("generating", float(pictures), estimate=True)


def _draw_on_ray(request: RunRequest, work: WorkOptions, batch: int, json: bool) -> None:
    from contextlib import ExitStack

    from stepvar.evaluation.ray_cluster import Workers
    from stepvar.evaluation.ray_run import generate_on_ray

    gpus = {"auto": None, "cuda": 1, "cpu": 0}
    if request.model.device not in gpus:
        raise InputError(f"--device {request.model.device} names one GPU: with --ray use cuda, or cpu.")
    workers = Workers(work.workers, work.worker_cpus or 1, gpus[request.model.device])
    with quiet_libraries(), CleanupOnInterrupt(), ExitStack() as stack:

        def starting(prepared: Prepared, pool: int) -> Callable[[int], None] | None:
            typer.echo(prepared.notes, err=True, nl=False)
            move = stack.enter_context(_progress(prepared.task.pictures))
            return None if move is None else lambda done: move(float(done), f"{pool} workers")

        mine = request.for_workers()
        status = generate_on_ray(mine, mine.folder, batch, work.address(), workers, starting)
    if status.lost:
        typer.echo(f"Note: {status.lost} workers were lost; others drew what they had not.", err=True)
    _print(status, status.prepared.task, status.prepared.identity, "the run is", json)


def _print(status: RunStatus, task: Task, identity: Any, others: str, json: bool) -> None:
    if json:
        display.print_json(
            {
                "folder": str(status.folder),
                "drawn": status.generated,
                "found": status.found,
                "missing": status.missing,
                "pictures": task.pictures,
                **identity,
            }
        )
        return
    counts = f"{status.generated} drawn, {status.found} found"
    if status.missing:
        typer.echo(f"{counts}; {status.missing} are missing, {others} not finished\n{status.folder}")
    else:
        typer.echo(f"{counts}; complete\n{status.folder / 'manifest.jsonl'}")
