"""Terminal output: progress bars on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from stepvar.cli.interrupts import CleanupOnInterrupt

if TYPE_CHECKING:
    from stepvar.generation.progress import Observer, ScaleReport
    from stepvar.generation.report import Summary

Row = Sequence[str]


def escape_unprintable_output() -> None:
    """Lets file names and prompts be shown that the terminal's encoding lacks, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout, in one piece."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def format_table(header: Row, rows: Sequence[Row]) -> str:
    """A table in plain text: the first column to the left, the others to the right.

    A row of one cell is a line of its own; an empty row is a rule.
    """
    full = [header, *(row for row in rows if len(row) == len(header))]
    widths = [max(len(row[column]) for row in full) for column in range(len(header))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = []
    for row in (header, (), *rows):
        if len(row) != len(header):
            lines.append(row[0] if row else rule)
            continue
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_seconds(value: float) -> str:
    """A time in readable units: "12.3 ms", "1.23 s", "2 min 5 s"."""
    if value < 1.0:
        return f"{1000 * value:.1f} ms"
    if value < 120.0:
        return f"{value:.2f} s"
    return f"{int(value // 60)} min {value % 60:.0f} s"


def format_bytes(value: float) -> str:
    """A number of bytes in readable units: "12.3 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def format_kept(kept: int, skipped: bool) -> str:
    """How many tokens of a scale ran."""
    return "skipped" if skipped else f"{kept:,}"


@contextmanager
def progress_bar(
    label: str, total: float, estimate: bool = False
) -> Iterator[Callable[[float, str], None] | None]:
    """A bar on stderr while the block runs; yields what advances it, None when stderr is no terminal.

    Args:
        label: Stands before the bar.
        total: Amount at which the bar is full.
        estimate: Whether the time that is left is shown, for long runs.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        *([TextColumn("left:"), TimeRemainingColumn()] if estimate else []),
        TextColumn("{task.fields[note]}"),
    )
    # The bar hides the cursor, which must come back after Ctrl-C.
    with CleanupOnInterrupt(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda amount, note: bar.update(task, advance=amount, note=note)


@contextmanager
def scale_progress(label: str, summary: Summary, repeats: int = 1) -> Iterator[Observer | None]:
    """A bar over the scales of `repeats` generations, which moves with the planned cost."""
    with progress_bar(label, float(repeats * summary.flops)) as advance:
        if advance is None:
            yield None
            return

        def observe(report: ScaleReport) -> None:
            scale = report.plan.scale
            note = f"scale {scale} skipped" if report.plan.skipped else f"scale {scale}"
            advance(float(summary.costs[scale.index].flops), note)

        yield observe
