"""`stepvar bench`: speed of a model's plans, measured in turn."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import (
    check_options,
    check_prompts,
    note_other_aspect,
    open_pipeline,
    quiet_libraries,
    require_prompts,
)
from stepvar.cli.options import (
    ExamplePrompt,
    FixedSeed,
    Json,
    ModelOptions,
    PictureOptions,
    PlanOptions,
    SamplingOptions,
    SizeOptions,
    VideoOptions,
)


@report_errors
@with_option_groups
def bench(
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    picture: PictureOptions,
    video: VideoOptions,
    prompt: ExamplePrompt = None,
    repeats: Annotated[int, typer.Option(min=1, max=10000, help="Measured rounds; times are medians.")] = 5,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=4096, help="Pictures in a batch.")] = 1,
    seed: FixedSeed = 0,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline", help="Compare every scale with the machine's own rate of products and of copies."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Measure the speed of a model's plans.

    Dense, skip only, prune only and both run in turn, after one round that is not counted; for a model whose
    plans are others, those. A plan that is given runs beside them.
    """
    if prompt is not None:
        require_prompts([prompt])
    pruning = plan.method()
    if pruning == "none":
        raise InputError("--pruning none is the dense run, which is measured anyway: leave it out.")
    dimensions = size.arguments()
    settings = {**sampling.arguments(), **picture.arguments(), **video.arguments()}
    with quiet_libraries():
        pipeline = open_pipeline(model)
        check_options(pipeline, {**dimensions, **settings})
        prompt = prompt or pipeline.example_prompt
        check_prompts(pipeline, sampling.texts([prompt]))
        note_other_aspect(pipeline, dimensions)
        from stepvar.evaluation.speed import measure_speed, usual_methods

        methods = usual_methods(pipeline)
        if pruning is not None:
            methods[plan.title] = pruning
        summary = pipeline.summary(**dimensions, **settings)
        runs = len(methods) * (repeats + 1) * (number if pipeline.draws_videos else 1)
        seeds = [seed + index for index in range(number)]
        with display.scale_progress("measuring", summary, runs) as observer:
            document = measure_speed(
                pipeline, [prompt] * number, seeds, repeats, methods, observer, dimensions, settings, roofline
            )
    if json:
        display.print_json(document)
    else:
        typer.echo(_describe(document))


def _describe(document: dict[str, Any]) -> str:
    methods = document["methods"]
    header = ("method", "time", "q1 to q3", "speed-up", "tokens", "transformer", "its speed-up", "its FLOPs")
    rows = [
        (
            name,
            display.format_seconds(method["seconds"]),
            " to ".join(display.format_seconds(method["spread"][quartile]) for quartile in ("q1", "q3")),
            f"{method['speedup']:.2f} x",
            f"{method['tokens']:,}",
            display.format_seconds(method["stages"]["scales"]),
            f"{method['transformer_speedup']:.2f} x",
            f"{method['flops_ratio']:.2f} x",
        )
        for name, method in methods.items()
    ]
    stages = [
        (stage, *(display.format_seconds(method["stages"][stage]) for method in methods.values()))
        for stage in ("text", "scales", "decode")
    ]
    scales = [
        (
            f"scale {entry['scale']}",
            *(
                "skipped"
                if method["scales"][index]["skipped"]
                else display.format_seconds(method["scales"][index]["seconds"])
                for method in methods.values()
            ),
        )
        for index, entry in enumerate(methods["dense"]["scales"])
    ]
    seconds = document["video_seconds"]
    counts = f"{document['images']} at a time"
    if seconds is not None:
        counts = f"{seconds:g} s of video, {document['images']} a call"
    rounds = f"median of {document['repeats']} rounds in turn"
    return "\n".join(
        [
            display.format_table(header, rows),
            "",
            display.format_table(("stage", *methods), [stages[0], *scales, stages[1], stages[2]]),
            *_describe_roofline(document),
            "",
            f"{document['width']} x {document['height']} pixels, {counts}, {document['dtype']}, {rounds}",
            f"{document['device_name']} ({document['device']}, {document['threads']} threads), "
            f"torch {document['torch']}, {document['attention']}",
        ]
    )


def _describe_roofline(document: dict[str, Any]) -> list[str]:
    """Each scale's share of the machine's rate of products, and of copies; empty where not measured."""
    methods = document["methods"]
    if "copy_bytes_per_second" not in document:
        return []

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    rows = [
        (
            f"scale {entry['scale']}",
            *(
                " / ".join(
                    share(method["scales"][index]["roofline"][name])
                    for name in ("product_share", "copy_share")
                )
                if not method["scales"][index]["skipped"]
                else "skipped"
                for method in methods.values()
            ),
        )
        for index, entry in enumerate(methods["dense"]["scales"])
        if index > 0
    ]
    last = ("last four", *(share(method["product_share_of_last_scales"]) for method in methods.values()))
    rate = document["copy_bytes_per_second"] / 1e9
    return [
        "",
        "Share of the time that the same matrix products need alone / that their operands need at the "
        f"copy rate of {rate:.1f} GB/s:",
        display.format_table(("", *methods), [*rows, last]),
    ]
