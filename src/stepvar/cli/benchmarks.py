"""`stepvar evaluate BENCHMARK`: pictures in the layout that a benchmark's official scorer reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.interrupts import CleanupOnInterrupt
from stepvar.cli.models import (
    check_options,
    check_prompts,
    note_other_aspect,
    open_pipeline,
    quiet_libraries,
)
from stepvar.cli.options import (
    BatchOptions,
    FixedSeed,
    Json,
    ModelOptions,
    PlanOptions,
    SamplingOptions,
    SizeOptions,
)

if TYPE_CHECKING:
    from stepvar.evaluation.benchmark_run import BenchmarkRun, RunStatus
    from stepvar.evaluation.benchmarks import Benchmark
    from stepvar.evaluation.run_folder import Shard

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
    """How much of a benchmark is generated, and by which process."""

    samples: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Pictures of each prompt. Default: the protocol's.")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts, for a trial.")] = None
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures generated at a time.")] = 4
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Part I of N, for processes that share the folder.")
    ] = None

    def part(self) -> Shard:
        """Which part of the prompts this process takes.

        Raises:
            InputError: When the value is not understood.
        """
        from stepvar.evaluation.run_folder import Shard

        if self.shard is None:
            return Shard()
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard {self.shard!r} is not understood: write I/N, such as 1/4 to 4/4.")
        return Shard(int(match[1]), int(match[2]))


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
        output: Folder,
        seed: FixedSeed = 0,
        json: Json = False,
    ) -> None:
        settings = {**sampling.arguments(), **together.arguments()}
        _generate(benchmark, prompts, model, plan, size, settings, run, output, seed, json)

    command.__name__ = benchmark.name
    command.__doc__ = f"Generate pictures of {benchmark.title}'s prompts.\n\n{benchmark.description}"
    if benchmark.video:
        command.__annotations__["run"] = "VideoRunOptions"
    return report_errors(with_option_groups(command))


def _generate(
    benchmark: Benchmark,
    prompts: Path,
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    settings: dict[str, Any],
    options: RunOptions,
    output: Path,
    seed: int,
    json: bool,
) -> None:
    dimensions, pruning = size.arguments(), plan.method()
    if seed < 0:
        raise InputError(f"The seed {seed} is out of range: use 0 or more.")
    from stepvar.evaluation.prompts import find_prompts

    # Before the libraries are kept from asking a hub.
    prompts = find_prompts(prompts, benchmark.own_file)
    with quiet_libraries():
        from stepvar.evaluation.benchmark_run import BenchmarkRun, Task
        from stepvar.evaluation.run_folder import check_run_folder

        # What is wrong with prompts or folder is said before a model is loaded.
        shard = options.part()
        check_run_folder(output)
        video_format = options.video_format if isinstance(options, VideoRunOptions) else "mp4"
        task = Task.load(benchmark, prompts, seed, options.samples, options.limit, video_format)
        pipeline = open_pipeline(model)
        everything = {**dimensions, **settings}
        check_options(pipeline, everything)
        run = BenchmarkRun(pipeline, task, output, pruning, everything)
        if not benchmark.video:
            note_other_aspect(pipeline, dimensions)
            negatives = [settings["negative_prompt"]] if "negative_prompt" in settings else []
            check_prompts(pipeline, [item.prompt for item in task.items] + negatives)
        status = _run_with_progress(run, shard, options.batch)
    if json:
        display.print_json(
            {
                "folder": str(status.folder),
                "drawn": status.generated,
                "found": status.found,
                "missing": status.missing,
                "pictures": task.pictures,
                **run.identity,
            }
        )
    else:
        typer.echo(_format_status(status, shard))


def _run_with_progress(run: BenchmarkRun, shard: Shard, batch: int) -> RunStatus:
    mine = -(-run.task.pictures // shard.count)
    with CleanupOnInterrupt(), display.progress_bar("generating", float(mine), estimate=True) as move:
        return run.generate(shard, batch, None if move is None else lambda done: move(float(done), ""))


def _format_status(status: RunStatus, shard: Shard) -> str:
    counts = f"{status.generated} drawn, {status.found} found"
    if status.missing:
        others = "other shards are" if shard.count > 1 else "the run is"
        return f"{counts}; {status.missing} are missing, {others} not finished\n{status.folder}"
    return f"{counts}; complete\n{status.folder / 'manifest.jsonl'}"


def describe_interval(name: str, interval: dict[str, Any], digits: int = 3) -> tuple[str, str, str]:
    """A row of a table: name, value, interval."""
    low, high = interval["low"], interval["high"]
    return name, f"{interval['value']:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"
