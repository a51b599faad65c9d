"""`stepvar convert` and `stepvar conformance`: official checkpoints in, proof of fidelity out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, one_line, report_errors
from stepvar.cli.interrupts import CleanupOnInterrupt
from stepvar.cli.models import import_silently, quiet_libraries
from stepvar.cli.options import DTYPES, Json

if TYPE_CHECKING:
    from stepvar.conformance import CaseReport

FAILED = 1
"""Exit code of a case that ran and did not pass."""

_SHOWN = 15


@report_errors
def convert(
    transformer: Annotated[Path, typer.Argument(help="Official file, shard folder or training checkpoint.")],
    tokenizer: Annotated[Path, typer.Argument(help="The visual tokenizer it was trained with.")],
    output: Annotated[Path, typer.Argument(help="The new folder.")],
    text_encoder: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder of the text encoder, such as flan-t5-xl; again for a second one."
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes, one a line or as JSON.")
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What weights were trained for, where their name does not say: 480p, 720p or interact "
            "(InfinityStar), 512 or 1024 (VAREdit).",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            "--model",
            metavar="NAME",
            help="Which model it is, where weights do not tell: varedit, whose files look like Infinity's.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Of the transformer; default: as in the file.")
    ] = None,
    json: Json = False,
) -> None:
    """Turn official checkpoints into a --model folder.

    What is written is safetensors, and appears when it is complete.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"Unknown --dtype {dtype!r}; known are {', '.join(DTYPES)}.")
    with quiet_libraries():
        import_silently()
        import torch

        from stepvar.loading.conversion import convert as run

        asked = {"labels": labels, "resolution": resolution}
        own = {name: value for name, value in asked.items() if value is not None}
        encoders = text_encoder[0] if text_encoder and len(text_encoder) == 1 else text_encoder
        with CleanupOnInterrupt():
            number_format = None if dtype is None else getattr(torch, dtype)
            folder = run(transformer, tokenizer, encoders, output, number_format, kind, **own)
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if json:
        display.print_json({"folder": str(folder), "bytes": stored})
    else:
        typer.echo(f"{folder} ({display.format_bytes(stored)}): use it with --model {folder}")


@report_errors
def conformance(
    case: Annotated[Path, typer.Argument(metavar="CASE_DIR", help="Folder of a golden case.")],
    json: Json = False,
) -> None:
    """Compare our model with a golden case.

    A case is what the official code computed; the exit code is 0 only if everything agrees.
    """
    with quiet_libraries():
        from stepvar.conformance import run_case

        try:
            report = run_case(case)
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"'{case}' is no usable golden case ({type(error).__name__}: {one_line(str(error))})."
            ) from error
    if json:
        display.print_json(_finite(report.as_json()))
    else:
        typer.echo(_describe(report))
    if not report.passed:
        raise typer.Exit(FAILED)


def _finite(document: dict) -> dict:
    """Infinite errors as null: JSON has no word for them."""
    for entry in document["tensors"].values():
        for key in ("max_abs", "max_rel"):
            entry[key] = entry[key] if entry[key] < float("inf") else None
    return document


def _describe(report: CaseReport) -> str:
    worst = sorted(report.tensors.items(), key=lambda item: (item[1].passed, -item[1].max_rel))
    rows: list[display.Row] = [
        (name, f"{error.max_abs:.2e}", f"{error.max_rel:.2e}", "ok" if error.passed else "FAILED")
        for name, error in worst[:_SHOWN]
    ]
    if len(worst) > _SHOWN:
        rows.append((f"... and {len(worst) - _SHOWN} closer ones", "", "", ""))
    failed = [name for name, error in worst if not error.passed]
    lines = [display.format_table(("tensor", "max abs", "max rel", ""), rows)]
    lines += [f"{name}: {report.tensors[name].note}" for name in failed if report.tensors[name].note]
    lines += [f"not compared: {name}" for name in report.uncompared]
    verdict = "passed" if report.passed else "FAILED"
    counts = f"{len(worst)} tensors compared, {len(failed)} failed, {len(report.uncompared)} not compared"
    return "\n".join([*lines, f"{verdict}: {counts}"])
