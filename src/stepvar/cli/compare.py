"""`stepvar compare`: dense and pruned from one seed, in one picture."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Json,
    ModelOptions,
    Output,
    PictureOptions,
    PlanOptions,
    Prompt,
    SamplingOptions,
    Seed,
    SizeOptions,
    VideoOptions,
)
from stepvar.cli.outputs import Destination, encode_png, versions, write_outputs
from stepvar.media.names import slug

if TYPE_CHECKING:
    from stepvar.evaluation.comparison import Comparison

Repeats = Annotated[int, typer.Option(min=1, max=1000, help="Measured rounds; times are medians.")]


@report_errors
@with_option_groups
def compare(
    prompt: Prompt,
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    picture: PictureOptions,
    video: VideoOptions,
    seed: Seed = None,
    repeats: Repeats = 3,
    output: Output = None,
    json: Json = False,
) -> None:
    """Draw a prompt dense and pruned, in one picture; of a video some frames side by side.

    Both share the seed; masks of the kept tokens, difference and times stand beside them. The plan is the
    paper's unless another is given.
    """
    require_prompts([prompt])
    dimensions = size.arguments()
    settings = {**sampling.arguments(), **picture.arguments(), **video.arguments()}
    pruning = plan.method(default="paper")
    if pruning == "none":
        raise InputError("--pruning none leaves nothing to compare: take a preset, or --ratios and --skip.")
    destination = Destination.parse(output)
    destination.check_names(1, (picture.image, video.video))
    own_seed = secrets.randbelow(2**31) if seed is None else seed
    with quiet_libraries():
        pipeline = open_pipeline(model)
        check_options(pipeline, {**dimensions, **settings})
        check_prompts(pipeline, sampling.texts([prompt]))
        note_other_aspect(pipeline, dimensions)
        [path] = destination.names([f"{slug(prompt)}-{own_seed}-compare"])
        from stepvar.evaluation.comparison import compare as run
        from stepvar.evaluation.figure import draw_comparison

        summary = pipeline.summary(pruning, **dimensions, **settings)
        with display.scale_progress("comparing", summary, 2 * (repeats + 1)) as observer:
            comparison = run(pipeline, prompt, pruning, own_seed, repeats, observer, dimensions, settings)
        document = comparison.as_json()
        figure = encode_png(draw_comparison(comparison), {**document, "versions": versions()})
        write_outputs({path: figure})
    if json:
        display.print_json({**document, "file": str(path), "versions": versions()})
    else:
        typer.echo(_describe(comparison, plan.title if plan.title != "none" else "paper", path))


def _describe(comparison: Comparison, plan: str, path: Path) -> str:
    dense, pruned = comparison.dense, comparison.pruned
    spent = dict(pruned.stages)
    counts = {str(entry.plan.scale): entry.plan for entry in pruned.report.scales}
    rows: list[display.Row] = []
    for name, seconds in dense.stages:
        entry = counts.get(name)
        rows.append(
            (
                name if entry is None else f"scale {name}",
                "" if entry is None else f"{entry.scale.tokens:,}",
                "" if entry is None else display.format_kept(entry.kept, entry.skipped),
                display.format_seconds(seconds),
                display.format_seconds(spent[name]) if name in spent else "",
            )
        )
    totals = (f"{dense.report.total_tokens:,}", f"{pruned.report.kept_tokens:,}")
    rows += [
        (),
        ("total", *totals, display.format_seconds(dense.seconds), display.format_seconds(pruned.seconds)),
    ]
    same = f"identical {'videos' if comparison.is_video else 'pictures'}"
    close = same if comparison.psnr is None else f"PSNR {comparison.psnr:.2f} dB"
    return "\n".join(
        [
            display.format_table(("stage", "tokens", "kept", "dense", "pruned"), rows),
            f"plan: {plan}",
            f"{comparison.speedup:.2f} x faster; {close}, SSIM {comparison.ssim:.4f}; seed {comparison.seed}",
            str(path),
        ]
    )
