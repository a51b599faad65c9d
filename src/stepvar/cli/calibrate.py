"""`stepvar calibrate`: a plan that meets a target speed or a target PSNR, for a model and a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import check_options, check_prompts, open_pipeline, quiet_libraries
from stepvar.cli.options import Json, ModelOptions, SamplingOptions, SizeOptions

if TYPE_CHECKING:
    from stepvar.evaluation.calibration import Calibration


@report_errors
@with_option_groups
def calibrate(
    model: ModelOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    target_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="How many times faster than dense, end to end.")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(metavar="DB", help="Instead: mean PSNR to the dense pictures.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="METHOD", help="What prunes; see generate.")] = "stepvar",
    skips: Annotated[
        int, typer.Option(min=0, max=8, help="Late scales that may be skipped where pruning is not enough.")
    ] = 0,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One prompt a line. Default: random scenes.")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--number",
            min=2,
            max=4096,
            help="Prompts used: a third to search with. Default: 48; with --target-psnr 144.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Find a plan that meets a target on this machine.

    Prints the options that `stepvar generate` takes for it. What it reaches is measured on prompts that the
    search did not see; a warning says where that is more than 5 % from the target.
    """
    if (target_speedup is None) == (target_psnr is None):
        raise InputError("Give --target-speedup or --target-psnr, one of the two.")
    # PSNR differs by several dB from prompt to prompt: its mean needs more of them than a time does.
    number = number or (48 if target_psnr is None else 144)
    dimensions, settings = size.arguments(), sampling.arguments()
    given = None if prompts is None else _prompts_of(prompts, number)
    with quiet_libraries():
        pipeline = open_pipeline(model)
        texts = given or _scenes(number, pipeline.draws_videos)
        check_options(pipeline, {**dimensions, **settings})
        check_prompts(pipeline, sampling.texts(texts))
        from stepvar.evaluation.calibration import calibrate as run

        with display.progress_bar("calibrating", 1.0) as move:
            found = run(
                pipeline,
                texts,
                target_speedup=target_speedup,
                target_psnr=target_psnr,
                method=method,
                skips=skips,
                advance=move,
                settings={**dimensions, **settings},
            )
    if json:
        display.print_json(found.as_json())
    else:
        typer.echo(_describe(found))
        if found.warning:
            typer.echo(f"Warning: {found.warning}", err=True)


def _prompts_of(file: Path, number: int) -> list[str]:
    from stepvar.evaluation.prompts import load_lines

    return load_lines(file)[:number]


def _scenes(number: int, moving: bool) -> list[str]:
    from stepvar.evaluation.calibration import PROMPT_SEED
    from stepvar.evaluation.scene_score import MOVING, STILL

    return [prompt.text for prompt in (MOVING if moving else STILL).prompts(number, PROMPT_SEED)]


def _describe(found: Calibration) -> str:
    rows = [
        (
            trial.options,
            f"{trial.flops_ratio:.2f} x",
            "" if trial.speedup is None else f"{trial.speedup:.2f} x",
            "" if trial.psnr is None else f"{trial.psnr:.2f} dB",
        )
        for trial in found.trials
    ]
    speed, psnr = found.speedup, found.psnr
    return "\n".join(
        [
            display.format_table(("tried", "fewer FLOPs", "speed-up", "PSNR"), rows),
            "",
            f"speed-up {speed.value:.2f} x ({speed.low:.2f} to {speed.high:.2f}), "
            f"PSNR {psnr.value:.2f} dB ({psnr.low:.2f} to {psnr.high:.2f})",
            found.options,
        ]
    )
