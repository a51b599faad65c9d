"""`stepvar evaluate scenes` and `edits`: the share of pictures that show what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import check_options, open_pipeline, quiet_libraries
from stepvar.cli.options import (
    BatchOptions,
    FixedSeed,
    Json,
    ModelOptions,
    PlanOptions,
    SamplingOptions,
    SizeOptions,
)
from stepvar.cli.outputs import Destination, check_sheet, encode_sheet, write_outputs

if TYPE_CHECKING:
    from stepvar.evaluation.edit_score import EditScores
    from stepvar.evaluation.scene_score import SceneScores

evaluate = typer.Typer(help="Draw and score benchmarks.", no_args_is_help=True)

Count = Annotated[int, typer.Option("-n", "--number", min=1, max=1_000_000, help="Prompts.")]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Pictures generated at a time.")]
Edits = Annotated[int, typer.Option("-n", "--number", min=1, max=1_000_000, help="Edits.")]
Share = Annotated[float, typer.Option(help="Of the picture that each box covers, between 0 and 1.")]
Margin = Annotated[
    int | None, typer.Option(help="Known tokens around the box that late scales run too. Default: 1.")
]
Beside = Annotated[
    str | None,
    typer.Option(
        metavar="PLAN,...",
        help="Also score the same edits in turn under these presets, or none (every token): gives paired "
        "differences and times.",
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write every finished edit to this .jsonl file; the same command goes on with it.",
    ),
]
Sheet = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also show the first ten edits, before, mask and after: .png or .jpg."),
]
Reconstructions = Annotated[
    bool,
    typer.Option("--reconstructions", help="Score the visual tokenizer alone, the upper bound."),
]


@evaluate.callback()
def _evaluate() -> None:
    """What comes before the name of a benchmark."""


@evaluate.command()
@report_errors
@with_option_groups
def scenes(
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    together: BatchOptions,
    number: Count = 300,
    seed: FixedSeed = 0,
    batch: Batch = 8,
    reconstructions: Reconstructions = False,
    json: Json = False,
) -> None:
    """Score pictures, or videos, of random scenes.

    Prompts of pictures cover GenEval's six categories; those of videos say how objects move. All is checked
    in the pixels alone.
    """
    dimensions, pruning = size.arguments(), plan.method()
    settings = {**sampling.arguments(), **together.arguments()}
    if reconstructions and (settings or pruning not in (None, "none")):
        raise InputError("--reconstructions runs no transformer: leave pruning and sampling options out.")
    if seed < 0:
        raise InputError(f"The seed {seed} is out of range: use 0 or more.")
    with quiet_libraries():
        pipeline = open_pipeline(model)
        everything = {**dimensions, **settings}
        check_options(pipeline, everything)
        from stepvar.evaluation.scene_score import (
            MOVING,
            STILL,
            evaluate_generation,
            evaluate_reconstructions,
        )

        kind = MOVING if pipeline.draws_videos else STILL
        with display.progress_bar("scoring", float(number)) as move:
            advance = None if move is None else lambda done: move(float(done), "")
            if reconstructions:
                scores = evaluate_reconstructions(pipeline, number, seed, batch, advance, dimensions, kind)
            else:
                scores = evaluate_generation(
                    pipeline, number, seed, pruning, batch, advance, everything, kind
                )
    document = {
        **scores.as_json(),
        "seed": seed,
        "pruning": plan.title,
        "reconstructions": reconstructions,
    }
    if json:
        display.print_json(document)
    else:
        typer.echo(_describe(scores, plan.title))


def _describe(scores: SceneScores, plan: str) -> str:
    document = scores.as_json()
    low, high = document["interval"]
    rows: list[display.Row] = [(name, _percent(score)) for name, score in document["categories"].items()]
    rows += [(), ("overall", _percent(document["overall"]))]
    aspects = [(name, _percent(score)) for name, score in document["aspects"].items()]
    splits = [
        (f"{label} ({document[key]['n']} prompts)", _percent(document[key]["overall"]))
        for label, key in (("combinations seen in training", "seen"), ("held-out combinations", "held_out"))
    ]
    return "\n".join(
        [
            display.format_table(("category", "score"), rows),
            f"plan: {plan}",
            f"95 % interval {_percent(low)} to {_percent(high)}, {document['n']} prompts, "
            f"{display.format_seconds(document['seconds_per_image'])} a picture",
            "",
            display.format_table(("aspect", "right"), aspects),
            "",
            display.format_table(("prompts", "score"), splits),
        ]
    )


@evaluate.command()
@report_errors
@with_option_groups
def edits(
    model: ModelOptions,
    plan: PlanOptions,
    sampling: SamplingOptions,
    number: Edits = 300,
    seed: FixedSeed = 0,
    share: Share = 0.25,
    margin: Margin = None,
    beside: Beside = None,
    output: Log = None,
    sheet: Sheet = None,
    json: Json = False,
) -> None:
    """Score edits of random scenes.

    Objects are replaced, get another colour or texture, are removed or added inside of a box; what the box
    shows then is checked in the pixels alone, and how well the rest was preserved is measured.
    """
    settings = {**sampling.arguments(), **({} if margin is None else {"margin": margin})}
    title = "region" if plan.title == "none" and plan.pruning is None else plan.title
    plans = {title: plan.method("region"), **_named_plans(beside, title)}
    if output is not None:
        if output.suffix.lower() != ".jsonl" or output.is_dir():
            raise InputError(f"'{output}' is no .jsonl file: name a new one, or one to go on with.")
        Destination.parse(output, (".jsonl",)).check_names(1)
    if seed < 0:
        raise InputError(f"The seed {seed} is out of range: use 0 or more.")
    if sheet is not None:
        check_sheet(sheet)
    with quiet_libraries():
        pipeline = open_pipeline(model)
        check_options(pipeline, sampling.arguments())
        for name, pruning in plans.items():
            if name != "region":
                pipeline.resolve_pruning(pruning)
        from stepvar.evaluation.edit_score import SHOWN, evaluate_edits

        with display.progress_bar("editing", float(number), estimate=True) as move:
            advance = None if move is None else lambda done: move(float(done), "")
            shown = 0 if sheet is None else SHOWN
            scores = evaluate_edits(
                pipeline, number, seed, plans, settings, share, log=output, advance=advance, show=shown
            )
    if sheet is not None:
        write_outputs({sheet: encode_sheet(scores.rows, sheet.suffix)})
    if json:
        display.print_json({**scores.as_json(), "seed": seed, "pruning": title})
    else:
        typer.echo(_describe_edits(scores))


def _named_plans(text: str | None, taken: str) -> dict[str, Any]:
    """Plans by name, in the order of a comma list.

    Raises:
        InputError: When one is there twice, or none is named.
    """
    if text is None:
        return {}
    names = [name.strip() for name in text.split(",")]
    for place, name in enumerate(names):
        if not name or name in (taken, *names[:place]):
            raise InputError(
                f"--beside {text!r} names {name!r} twice, or nothing: write presets such as none,best, "
                f"others than {taken}."
            )
    return {name: None if name == "none" else name for name in names}


def _describe_edits(scores: EditScores) -> str:
    documents = {plan: scores.plan_as_json(plan) for plan in scores.plans}
    first = next(iter(documents.values()))
    lines = []
    for title, key in (("kind of edit", "kinds"), ("in the box", "aspects")):
        rows: list[display.Row] = [
            (name, *(_percent(document[key][name]) for document in documents.values())) for name in first[key]
        ]
        if key == "kinds":
            rows += [(), ("all right", *(_percent(document["overall"]) for document in documents.values()))]
        lines += [display.format_table((title, *documents), rows), ""]
    for plan, document in documents.items():
        low, high = document["interval"]
        lines.append(
            f"plan {plan}: 95 % interval {_percent(low)} to {_percent(high)}; outside of the box before "
            f"compositing {document['psnr_outside']:.1f} dB; median "
            f"{display.format_seconds(document['seconds_per_edit'])} an edit"
        )
        if plan != scores.reference:
            points = scores.difference(plan).scaled(100.0).format(1)
            faster = f"{scores.faster(plan):.2f} x faster"
            lines.append(f"  against {scores.reference}, edit by edit: {points} points, {faster}")
    lines.append(
        f"{first['n']} edits, boxes of {first['box_share']:.0%} of the picture; the visual tokenizer alone "
        f"has {first['psnr_tokenizer']:.1f} dB outside of them"
    )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
