"""The `stepvar` program: every command in one application."""

from __future__ import annotations

from typing import Annotated

import typer

from stepvar.cli.bench import bench
from stepvar.cli.benchmarks import benchmark_command
from stepvar.cli.calibrate import calibrate
from stepvar.cli.compare import compare
from stepvar.cli.convert import conformance, convert
from stepvar.cli.edit import edit
from stepvar.cli.evaluate import evaluate
from stepvar.cli.generate import generate, summary
from stepvar.cli.presets import presets
from stepvar.cli.reproduce import reproduce
from stepvar.cli.runs import RunCommand
from stepvar.cli.scores import clip, fid, fidelity, score
from stepvar.cli.serve import serve
from stepvar.cli.ui import ui
from stepvar.evaluation.benchmarks import BENCHMARKS

app = typer.Typer(
    name="stepvar",
    help="Fast next-scale-prediction image generation, with structure-texture guided token pruning.",
    no_args_is_help=True,
    add_completion=False,
    # rich would triple the time of --help.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command(cls=RunCommand)(generate)
for _command in (
    edit,
    compare,
    summary,
    presets,
    serve,
    ui,
    bench,
    calibrate,
    reproduce,
    convert,
    conformance,
):
    app.command()(_command)
for _benchmark in BENCHMARKS.values():
    evaluate.command(_benchmark.name, cls=RunCommand)(benchmark_command(_benchmark))
for _command in (fidelity, fid, clip, score):
    evaluate.command()(_command)
app.add_typer(evaluate, name="evaluate")


def _show_version(asked: bool) -> None:
    if asked:
        import stepvar

        typer.echo(stepvar.__version__)
        raise typer.Exit


@app.callback()
def _stepvar(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options that come before a command."""


__all__ = ["app"]
