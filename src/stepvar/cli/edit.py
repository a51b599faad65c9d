"""`stepvar edit`: draws a picture anew inside a mask or a new border, or varies all of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import display
from stepvar.cli.errors import report_errors
from stepvar.cli.generate import FRESH_SEEDS, draw_all
from stepvar.cli.groups import CallOptions, Parsed, with_option_groups
from stepvar.cli.models import check_options, open_pipeline, quiet_libraries, require_prompts
from stepvar.cli.options import (
    BatchOptions,
    Json,
    ModelOptions,
    Number,
    Output,
    PlanOptions,
    SamplingOptions,
    Seed,
    SizeOptions,
)
from stepvar.cli.outputs import Destination, check_sheet, encode_sheet, write_outputs
from stepvar.cli.values import parse_box, parse_integers
from stepvar.media.names import slug

if TYPE_CHECKING:
    from stepvar.models.editing import EditOutput
    from stepvar.models.pipeline import NextScalePipeline

Source = Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture to edit.")]
Prompt = Annotated[
    str, typer.Argument(help="What the whole edited picture shows, or a class; for VAREdit what to change.")
]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Pictures drawn at a time: more take more memory.")]
Sheet = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also show before, mask and after side by side: .png or .jpg."),
]


def _parse_four(text: str, option: str) -> list[int]:
    return parse_integers(text, option, 4)


@dataclass(frozen=True)
class EditOptions(CallOptions):
    """What may change, and how it is put back."""

    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="White may change; of the picture's size, or of its shape."),
    ] = None
    box: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Instead of a mask: left, top, width and height in pixels, or shares: 0.25,0.25,0.5,0.5.",
        ),
        Parsed(parse_box),
    ] = None
    outpaint: Annotated[
        str | None,
        typer.Option(metavar="L,T,R,B", help="Pixels of new border at the left, top, right and bottom."),
        Parsed(_parse_four),
    ] = None
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of the scales that are drawn, the last ones, above 0 to 1; alone it varies the whole "
            "picture. Default with a mask: 1."
        ),
    ] = None
    margin: Annotated[
        int | None,
        typer.Option(help="Known tokens around the mask that late scales run too. Default: 1."),
    ] = None
    feather: Annotated[
        int | None,
        typer.Option(
            help="Pixels inside of the mask that blend old and new. Default: 1/64 of the shorter side."
        ),
    ] = None
    fit: Annotated[
        str | None,
        typer.Option(metavar="crop|pad", help="How a picture of another shape is fitted. Default: crop."),
    ] = None


Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="Leave what the decoder drew outside of the mask, at the model's size; no pasting back."
    ),
]
Summary = Annotated[
    bool, typer.Option("--summary", help="Only show what would run: tokens and FLOPs of every scale.")
]


@report_errors
@with_option_groups
def edit(
    image: Source,
    prompt: Prompt,
    model: ModelOptions,
    editing: EditOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    together: BatchOptions,
    raw: Raw = False,
    sheet: Sheet = None,
    summary: Summary = False,
    seed: Seed = None,
    number: Number = 1,
    batch: Batch = 4,
    output: Output = None,
    json: Json = False,
) -> None:
    """Draw a picture anew inside of a mask, in a new border, or in a variation; or as an instruction says.

    Pixels outside of the mask stay the picture's. Late scales run only near the mask (--pruning region, the
    default), a plan such as --pruning best prunes what is left, and --pruning none runs everything. VAREdit
    takes an instruction, "make it night", and needs no mask.
    """
    require_prompts([prompt])
    call = {**size.arguments(), **sampling.arguments(), **together.arguments()}
    settings = {
        **editing.arguments(),
        "image": image,
        "pruning": plan.method("region"),
        "composited": not raw,
    }
    destination = Destination.parse(output)
    destination.check_names(number, (image, editing.mask))
    if sheet is not None:
        check_sheet(sheet, (image, editing.mask), [(destination, number)])
    with quiet_libraries():
        _check_input(settings)
        pipeline = open_pipeline(model)
        check_options(pipeline, call)
        if pipeline.needs_picture and plan.title == "none":
            # It draws whole pictures: no region is there to run.
            settings["pruning"] = None
        pipeline.check_prompts([prompt], sampling.texts([]))
        if summary:
            _show(pipeline, {**call, **settings, pipeline._subject: prompt}, number, json)
            return
        first = secrets.randbelow(FRESH_SEEDS) if seed is None else seed
        jobs = [(prompt, first + index) for index in range(number)]
        paths = destination.names([f"{slug(image.stem)}-edited-{own_seed}" for _, own_seed in jobs])
        results: list[EditOutput] = []

        def call_edit(*args: Any, **kwargs: Any) -> EditOutput:
            results.append(pipeline.edit(*args, **kwargs))
            return results[-1]

        drawn = draw_all(pipeline, jobs, paths, batch, {**call, **settings}, call_edit)
    for note in results[0].notes[0]:
        typer.echo(f"Note: {note}.", err=True)
    if sheet is not None:
        rows = [row for each in results for row in zip(each.before, each.masks, each.images, strict=True)]
        write_outputs({sheet: encode_sheet(rows, sheet.suffix)})
    if json:
        display.print_json(drawn.as_json())
    else:
        typer.echo(drawn.describe())


def _check_input(settings: dict[str, Any]) -> None:
    """Refuses, before a model is loaded, pictures and masks that cannot be used."""
    from stepvar.editing.pictures import open_canvas

    open_canvas(settings["image"], settings.get("mask"), settings.get("box"), settings.get("outpaint"))


def _show(pipeline: NextScalePipeline, settings: dict[str, Any], number: int, json: bool) -> None:
    found = pipeline.summary(num_images_per_prompt=number, **settings)
    if json:
        display.print_json(found.as_json())
    else:
        typer.echo(str(found))
