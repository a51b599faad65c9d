"""`stepvar reproduce`: every table and figure of the paper that can be measured, in one report."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import open_pipeline, open_second, quiet_libraries
from stepvar.cli.options import Json, Lpips, ModelOptions, Second
from stepvar.cli.rules import RecoveryRule, ScoreRule, register_rules

if TYPE_CHECKING:
    from stepvar.pruning.stepvar import StepVAR
    from stepvar.report.run import Outcome, RunPlan
    from stepvar.report.steps import Advance

_LINE_EVERY = 60.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""


@report_errors
@with_option_groups
def reproduce(
    model: ModelOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the report, new or of this run.")
    ] = Path("report"),
    minutes: Annotated[
        float | None, typer.Option(min=0.1, max=100_000, help="How long it may take. Default: 55.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A miniature of about two minutes.")] = False,
    cascade: Second = None,
    lpips: Lpips = None,
    score: ScoreRule = None,
    recovery: RecoveryRule = None,
    pruning: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A plan of 'stepvar calibrate -o', measured too.")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A finished report of another model, whose verdicts stand beside."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the paper's tables and figures.

    Writes index.html, numbers.json and raw numbers. An interrupted run continues when it is started again.
    A --score or a --recovery of yours is measured beside the built-in ones, and so is a plan by --pruning.
    --beside tells where two models differ; a finished report is written anew without measuring again.
    """
    if quick and minutes is not None:
        raise InputError("--quick is a time of its own: give it, or --minutes, not both.")
    from stepvar.report.protocol import DEFAULT_MINUTES, QUICK_MINUTES

    wanted = QUICK_MINUTES if quick else DEFAULT_MINUTES if minutes is None else minutes
    with quiet_libraries():
        from stepvar.report.charts import require_matplotlib

        require_matplotlib()
        from stepvar.metrics.perceptual import load_lpips
        from stepvar.report.folder import check_place
        from stepvar.report.other_report import read_report

        # What can be refused at once is refused before a model is loaded.
        rules = _rules(register_rules(score, recovery))
        plans = _plans(pruning)
        check_place(output)
        if beside is not None:
            read_report(beside)
        distance = None if lpips is None else load_lpips(lpips, model.resolve_device())
        pipeline = open_pipeline(model)
        second = None if cascade is None else open_second(model, cascade)
        from stepvar.report.run import reproduce as run

        progress = _Progress()
        try:
            outcome = run(
                pipeline,
                output,
                minutes=wanted,
                lpips=distance,
                cascade=second,
                rules=rules,
                plans=plans,
                beside=beside,
                announce=progress.begin,
                advance=progress.advance,
            )
        finally:
            progress.end()
    if json:
        display.print_json({"report": str(outcome.page), "steps": outcome.steps, **outcome.numbers})
    else:
        typer.echo(_describe(outcome))


def _rules(names: Mapping[str, Any]) -> dict[str, StepVAR]:
    """The method of the rules that were given, under their names."""
    from stepvar.pruning.stepvar import StepVAR

    rule = replace(StepVAR(), **names)
    return {" + ".join(names.values()): rule} if names else {}


def _plans(file: Path | None) -> dict[str, StepVAR]:
    """The plan of a file under the file's name."""
    from stepvar.models.plan_files import load_plan
    from stepvar.pruning.stepvar import StepVAR

    if file is None:
        return {}
    plan = load_plan(file)
    if not isinstance(plan, StepVAR):
        raise InputError(f"'{file}' is a plan of {type(plan).__name__}, which a report measures anyway.")
    return {file.stem: plan}


class _Progress:
    """A bar on a terminal, a line a minute elsewhere."""

    def __init__(self) -> None:
        self.bar: object | None = None
        self.move: Advance | None = None
        self.total = self.done = 0.0
        self.started = self.printed = time.monotonic()

    def begin(self, plan: RunPlan) -> None:
        protocol = plan.protocol
        again = f", {plan.done} of {plan.steps} steps were done before" if plan.done else ""
        left = "" if plan.seconds is None else f", about {display.format_seconds(plan.seconds)}"
        typer.echo(
            f"{protocol.pictures} pictures of the plans in question, "
            f"{protocol.batch * protocol.main_blocks} of each rival, "
            f"{protocol.batch * protocol.ablation_blocks} of each ablation{again}{left}.",
            err=True,
        )
        self.total, self.started = max(plan.weight, 1e-9), time.monotonic()
        self.bar = display.progress_bar("measuring", self.total, estimate=True)
        self.move = self.bar.__enter__()  # type: ignore[attr-defined]

    def advance(self, weight: float, name: str) -> None:
        self.done += weight
        if self.move is not None:
            self.move(weight, name)
            return
        now = time.monotonic()
        if self.done and now - self.printed > _LINE_EVERY and not sys.stderr.isatty():
            self.printed = now
            left = (now - self.started) * (self.total / self.done - 1.0)
            typer.echo(
                f"{self.done / self.total:.0%} done, about {display.format_seconds(left)} left", err=True
            )

    def end(self) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)  # type: ignore[attr-defined]


def _describe(outcome: Outcome) -> str:
    rows = [
        (
            row["label"],
            f"{row['tokens']:.0%}",
            f"{row['speedup']['value']:.2f} x",
            "" if row["label"] == "dense" else f"{row['psnr']['value']:.2f} dB",
            f"{row['scene']['value']:.1%}" if "scene" in row else "",
        )
        for row in outcome.numbers["tables"]["decomposition"]
    ]
    claims = outcome.numbers["claims"]
    verdicts = [f"{claim['verdict']:>12}: {claim['text']}" for claim in claims]
    return "\n".join(
        [
            display.format_table(("plan", "tokens", "speed-up", "PSNR", "scene score"), rows),
            "",
            *verdicts,
            str(outcome.page),
        ]
    )
