"""`stepvar evaluate geneval | dpg | mjhq | vbench`: pictures in the layout that official scorers read."""

from __future__ import annotations

import re
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
from stepvar.cli.options import FixedSeed, Json, ModelOptions, PlanOptions, SamplingOptions, SizeOptions

if TYPE_CHECKING:
    from stepvar.evaluation.benchmarks import Drawing, Run
    from stepvar.evaluation.run_folder import Shard

Prompts = Annotated[
    Path,
    typer.Argument(
        metavar="PROMPTS",
        help="The benchmark's own file of prompts, or ORG/NAME[:FILE] for one of a data set on the hub.",
    ),
]
Folder = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="The run's folder: new, or to go on with.")
]


@dataclass(frozen=True)
class RunOptions:
    """How much of a benchmark is drawn, and by whom."""

    samples: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Pictures of each prompt. Default: the protocol's.")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts, for a trial.")] = None
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures drawn at a time.")] = 4
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Part I of N, for processes that share the folder.")
    ] = None

    def part(self) -> Shard:
        """Which part of the prompts is drawn here.

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


@report_errors
@with_option_groups
def geneval(
    prompts: Prompts,
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    output: Folder,
    seed: FixedSeed = 0,
    json: Json = False,
) -> None:
    """Draw GenEval's prompts.

    PROMPTS is evaluation_metadata.jsonl; four pictures of each prompt.
    """
    _draw("geneval", prompts, model, plan, size, sampling, run, output, seed, json)


@report_errors
@with_option_groups
def dpg(
    prompts: Prompts,
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    output: Folder,
    seed: FixedSeed = 0,
    json: Json = False,
) -> None:
    """Draw DPG-Bench's prompts.

    PROMPTS is the folder of .txt files or dpg_bench.csv; four pictures of each prompt in one grid.
    """
    _draw("dpg", prompts, model, plan, size, sampling, run, output, seed, json)


@report_errors
@with_option_groups
def mjhq(
    prompts: Prompts,
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    output: Folder,
    seed: FixedSeed = 0,
    json: Json = False,
) -> None:
    """Draw MJHQ-30K's prompts.

    PROMPTS is meta_data.json; one picture of each, in a folder per category.
    """
    _draw("mjhq", prompts, model, plan, size, sampling, run, output, seed, json)


@report_errors
@with_option_groups
def vbench(
    prompts: Prompts,
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    output: Folder,
    seed: FixedSeed = 0,
    video_format: Annotated[str, typer.Option(metavar="FORMAT", help="mp4, or gif.")] = "mp4",
    json: Json = False,
) -> None:
    """Draw VBench's prompts with a video model.

    PROMPTS is VBench_full_info.json; five videos of each prompt, 25 for temporal flickering.
    """
    _draw("vbench", prompts, model, plan, size, sampling, run, output, seed, json, video_format)


def _draw(
    name: str,
    prompts: Path,
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    choice: RunOptions,
    output: Path,
    seed: int,
    json: bool,
    video_format: str = "mp4",
) -> None:
    dimensions, settings, pruning = size.arguments(), sampling.arguments(), plan.method()
    if seed < 0:
        raise InputError(f"The seed {seed} is out of range: use 0 or more.")
    from stepvar.evaluation.prompts import find_prompts

    # Before the libraries are kept from asking a hub.
    prompts = find_prompts(prompts, name)
    with quiet_libraries():
        from stepvar.evaluation.benchmarks import BENCHMARKS, Run

        benchmark, shard = BENCHMARKS[name], choice.part()
        # Broken prompts are told before a model is loaded.
        benchmark.load(prompts)
        pipeline = open_pipeline(model)
        everything = {**dimensions, **settings}
        check_options(pipeline, everything)
        if pipeline.draws_videos and not benchmark.video:
            everything["seconds"] = 0
        run = Run(
            pipeline,
            benchmark,
            prompts,
            output,
            pruning,
            seed,
            choice.samples,
            choice.limit,
            everything,
            video_format,
        )
        if not benchmark.video:
            note_other_aspect(pipeline, dimensions)
            check_prompts(pipeline, sampling.texts([item.prompt for item in run.items]))
        drawn = _advance(run, shard, choice.batch)
    if json:
        display.print_json(
            {
                "folder": str(drawn.folder),
                "drawn": drawn.drawn,
                "found": drawn.found,
                "missing": drawn.missing,
                "pictures": run.pictures,
                **run.identity,
            }
        )
    else:
        typer.echo(_describe(drawn, shard))


def _advance(run: Run, shard: Shard, batch: int) -> Drawing:
    mine = -(-run.pictures // shard.count)
    with CleanupOnInterrupt(), display.progress_bar("drawing", float(mine), estimate=True) as move:
        return run.draw(shard, batch, None if move is None else lambda done: move(float(done), ""))


def _describe(drawn: Drawing, shard: Shard) -> str:
    told = f"{drawn.drawn} drawn, {drawn.found} found"
    if drawn.missing:
        others = "other shards are" if shard.count > 1 else "the run is"
        return f"{told}; {drawn.missing} are missing, {others} not finished\n{drawn.folder}"
    return f"{told}; complete\n{drawn.folder / 'manifest.jsonl'}"


def describe_interval(name: str, interval: dict[str, Any], digits: int = 3) -> tuple[str, str, str]:
    """A row of a table: name, value, interval."""
    low, high = interval["low"], interval["high"]
    return name, f"{interval['value']:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"
