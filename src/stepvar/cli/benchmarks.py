"""`stepvar evaluate BENCHMARK`: pictures in the layout that a benchmark's official scorer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import quiet_libraries
from stepvar.cli.options import (
    BatchOptions,
    FixedSeed,
    Json,
    ModelOptions,
    PlanOptions,
    SamplingOptions,
    SizeOptions,
)
from stepvar.cli.runs import RunRequest, WorkOptions, carry_out

if TYPE_CHECKING:
    from stepvar.evaluation.benchmark_task import Task
    from stepvar.evaluation.benchmarks import Benchmark

Prompts = Annotated[
    Path,
    typer.Argument(
        metavar="PROMPTS",
        help="The benchmark's own file of prompts, or ORG/NAME[:FILE] for one of a data set on the hub.",
    ),
]
Folder = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="The run's folder: new, or to continue.")
]


@dataclass(frozen=True)
class RunOptions:
    """How much of a benchmark is generated."""

    samples: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Pictures of each prompt. Default: the protocol's.")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts, for a trial.")] = None
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures generated at a time.")] = 4


@dataclass(frozen=True)
class VideoRunOptions(RunOptions):
    """The same, of a benchmark of videos."""

    video_format: Annotated[str, typer.Option(metavar="FORMAT", help="mp4, or gif.")] = "mp4"


def benchmark_command(benchmark: Benchmark) -> Callable[..., None]:
    """The command that generates the pictures of a benchmark."""

    def command(
        prompts: Prompts,
        model: ModelOptions,
        plan: PlanOptions,
        size: SizeOptions,
        sampling: SamplingOptions,
        together: BatchOptions,
        run: RunOptions,
        work: WorkOptions,
        output: Folder,
        seed: FixedSeed = 0,
        json: Json = False,
    ) -> None:
        if seed < 0:
            raise InputError(f"The seed {seed} is out of range: use 0 or more.")
        task = _task(benchmark, prompts, run, output, seed)
        request = RunRequest(task, output, model, plan, size, sampling, together.arguments())
        carry_out(request, work, run.batch, json)

    command.__name__ = benchmark.name
    command.__doc__ = f"Generate pictures of {benchmark.title}'s prompts.\n\n{benchmark.description}"
    if benchmark.video:
        command.__annotations__["run"] = "VideoRunOptions"
    return report_errors(with_option_groups(command))


def _task(benchmark: Benchmark, prompts: Path, options: RunOptions, output: Path, seed: int) -> Task:
    """What is to be drawn; what is wrong with prompts or folder is said before a model is loaded."""
    from stepvar.evaluation.prompts import find_prompts

    # Before the libraries are kept from asking a hub.
    prompts = find_prompts(prompts, benchmark.own_file)
    with quiet_libraries():
        from stepvar.evaluation.benchmark_task import Task
        from stepvar.evaluation.run_folder import check_run_folder

        check_run_folder(output)
        video_format = options.video_format if isinstance(options, VideoRunOptions) else "mp4"
        return Task.load(benchmark, prompts, seed, options.samples, options.limit, video_format)


def describe_interval(name: str, interval: dict[str, Any], digits: int = 3) -> tuple[str, str, str]:
    """A row of a table: name, value, interval."""
    low, high = interval["low"], interval["high"]
    return name, f"{interval['value']:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"
