"""`stepvar calibrate`: a plan that meets a target on this machine, or a recovery fitted to a model."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import check_options, check_prompts, open_pipeline, quiet_libraries
from stepvar.cli.options import Json, ModelOptions, PlanOptions, SamplingOptions, SizeOptions

if TYPE_CHECKING:
    from stepvar.evaluation.calibration import Calibration, RecoveryCalibration
    from stepvar.generation.pruner import PruningMethod
    from stepvar.pruning.stepvar import StepVAR


FITTED = "calibrated"
"""The recovery that has to be fitted."""


@report_errors
@with_option_groups
def calibrate(
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    target_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="How many times faster than dense, end to end.")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(metavar="DB", help="Instead: mean PSNR to the dense pictures.")
    ] = None,
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
            help="Prompts used. Default: 48, a third to search with; with --target-psnr 144; with --recovery "
            "40, three quarters to fit on.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A .json file for the plan, which --pruning takes."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Find a plan that meets a target on this machine, or fit a recovery.

    With a target the plan is searched for, of --method; printed are the options that 'stepvar generate' takes
    for it. What it reaches is measured on prompts that the search did not see; a warning says where that is
    more than 5 % from the target. With --recovery calibrated, and a plan by --pruning or --ratios, the maps
    of that recovery are fitted to the model and stored with the plan.
    """
    targets = [target for target in (target_speedup, target_psnr) if target is not None]
    fits = plan.recovery == FITTED
    _check_mode(plan, len(targets), fits, skips, output)
    # PSNR differs by several dB from prompt to prompt: its mean needs more of them than a time does.
    number = number or (40 if fits else 48 if target_psnr is None else 144)
    dimensions, settings = size.arguments(), sampling.arguments()
    given = None if prompts is None else _prompts_of(prompts, number)
    method = replace(plan, recovery=None).method() if fits else None
    with quiet_libraries():
        pipeline = open_pipeline(model)
        texts = given or _scenes(number, pipeline.draws_videos)
        check_options(pipeline, {**dimensions, **settings})
        check_prompts(pipeline, sampling.texts(texts))
        from stepvar.evaluation.calibration import calibrate as run
        from stepvar.evaluation.calibration import calibrate_recovery
        from stepvar.models.plan_files import save_plan

        found: Calibration | RecoveryCalibration
        with display.progress_bar("calibrating", 1.0) as move:
            if fits:
                resolved = _fittable(pipeline.resolve_pruning(method))
                found = calibrate_recovery(
                    pipeline, texts, resolved, advance=move, settings={**dimensions, **settings}
                )
            else:
                found = run(
                    pipeline,
                    texts,
                    target_speedup=target_speedup,
                    target_psnr=target_psnr,
                    method=plan.method_name or "stepvar",
                    skips=skips,
                    advance=move,
                    settings={**dimensions, **settings},
                )
        files = [] if output is None else [str(file) for file in save_plan(found.plan, output)]
    if json:
        display.print_json({**found.as_json(), **({"files": files} if files else {})})
        return
    typer.echo("\n".join([*_describe(found), *files]))
    warning = getattr(found, "warning", None)
    if warning:
        typer.echo(f"Warning: {warning}", err=True)


def _check_mode(plan: PlanOptions, targets: int, fits: bool, skips: int, output: Path | None) -> None:
    """Raises InputError when options ask for nothing, or for two things at once."""
    if targets + fits != 1:
        raise InputError(
            "Give --target-speedup or --target-psnr, one of the two; or without them --recovery calibrated."
        )
    if fits and skips:
        raise InputError("--skips is of a search: with --recovery calibrated name the scales by --skip.")
    if fits and output is None:
        raise InputError("Name a .json file with -o: a fitted recovery has to be stored.")
    if fits and plan.pruning is None and plan.ratios is None:
        raise InputError("A recovery is fitted to a plan: give --pruning, or --ratios.")
    given = {} if fits else {entry.name: getattr(plan, entry.name) for entry in fields(plan)}
    fixed = [name for name, value in given.items() if value is not None and name != "method_name"]
    if fixed:
        raise InputError(f"With a target the plan is searched for: leave --{fixed[0]} out.")
    if output is not None and (output.suffix != ".json" or not output.absolute().parent.is_dir()):
        raise InputError(f"'{output}' is no place for a plan: name a .json file in a folder that exists.")


def _fittable(method: PruningMethod | None) -> StepVAR:
    from stepvar.pruning.stepvar import StepVAR

    if not isinstance(method, StepVAR):
        kind = "a dense run" if method is None else type(method).__name__
        raise InputError(
            f"A recovery is fitted for a plan of StepVAR, and this is {kind}: name another plan."
        )
    return method


def _prompts_of(file: Path, number: int) -> list[str]:
    from stepvar.evaluation.prompts import load_lines

    return load_lines(file)[:number]


def _scenes(number: int, moving: bool) -> list[str]:
    from stepvar.evaluation.calibration import PROMPT_SEED
    from stepvar.evaluation.scene_score import MOVING, STILL

    return [prompt.text for prompt in (MOVING if moving else STILL).prompts(number, PROMPT_SEED)]


def _describe(found: Calibration | RecoveryCalibration) -> list[str]:
    from stepvar.evaluation.calibration import Calibration

    return _describe_search(found) if isinstance(found, Calibration) else _describe_fit(found)


def _describe_fit(found: RecoveryCalibration) -> list[str]:
    from stepvar.pruning.recovery import Calibrated

    recovery = found.plan.recovery
    assert isinstance(recovery, Calibrated)
    rows = [
        (
            fitted.name,
            f"{fitted.ratio:.2f}",
            f"{1.0 - fitted.error:.0%}",
            f"{fitted.weight.nbytes / 2**20:.1f} MiB",
        )
        for fitted in recovery.maps
    ]
    return [
        display.format_table(("scale", "pruned", "less error", "map"), rows),
        "",
        f"PSNR {found.after.format(unit=' dB')}, before {found.before.format(unit=' dB')}; "
        f"change {found.change.format(unit=' dB')}, on {found.after.n} prompts that the fit did not see",
    ]


def _describe_search(found: Calibration) -> list[str]:
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
    return [
        display.format_table(("tried", "fewer FLOPs", "speed-up", "PSNR"), rows),
        "",
        f"speed-up {speed.value:.2f} x ({speed.low:.2f} to {speed.high:.2f}), "
        f"PSNR {psnr.value:.2f} dB ({psnr.low:.2f} to {psnr.high:.2f})",
        found.options,
    ]
