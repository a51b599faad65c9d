"""`stepvar evaluate fidelity | fid | clip | score`: numbers from pictures on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import display
from stepvar.cli.benchmarks import describe_interval
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import import_silently, open_pipeline, quiet_libraries
from stepvar.cli.options import Json, Lpips, ModelOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepvar.evaluation.scoring import Advance
    from stepvar.metrics.features import Extractor

Run = Annotated[Path, typer.Argument(metavar="DIR", help="A run of 'stepvar evaluate'.")]
Features = Annotated[
    str, typer.Option("--features", metavar="NAME", help="inception, clip, scenes or tokenizer (of --model).")
]
Weights = Annotated[
    Path | None, typer.Option(metavar="PATH", help="File of Inception's weights, or folder of a CLIP model.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda (cuda:1, ...) or auto.")]


@report_errors
@with_option_groups
def fidelity(
    folder: Run,
    dense: Annotated[Path, typer.Option(metavar="DIR", help="The run to be like, of the same seeds.")],
    model: ModelOptions,
    features: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For a Fréchet distance: inception, clip, scenes or tokenizer."),
    ] = None,
    weights: Weights = None,
    lpips: Lpips = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes that compare. Default: one a CPU.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare a run with another, picture by picture.

    PSNR, SSIM and fine detail; on request LPIPS and a Fréchet distance.
    """
    with quiet_libraries():
        from stepvar.evaluation.pairs import available_processes
        from stepvar.evaluation.scoring import compare_runs
        from stepvar.metrics.perceptual import load_lpips

        extractor = None if features is None else _extractor(features, weights, model)
        perceptual = None if lpips is None else load_lpips(lpips, model.resolve_device())
        with display.progress_bar("comparing", 1.0) as move:
            document = compare_runs(
                folder, dense, extractor, perceptual, _advance(move), processes or available_processes()
            )
    _show(document, json, f"{document['n']} pictures")


@report_errors
@with_option_groups
def fid(
    folder: Run,
    reference: Annotated[Path, typer.Option(metavar="DIR", help="Folder of real pictures.")],
    model: ModelOptions,
    features: Features = "inception",
    weights: Weights = None,
    json: Json = False,
) -> None:
    """Fréchet distance to a folder of real pictures.

    With Inception's features this is FID.
    """
    with quiet_libraries():
        from stepvar.evaluation.scoring import frechet_of_folders

        extractor = _extractor(features, weights, model)
        with display.progress_bar("reading", 1.0) as move:
            document = frechet_of_folders(folder, reference, extractor, _advance(move))
    if json:
        display.print_json({**document, "extractor": features})
        return
    counts = f"{document['pictures']} against {document['reference_pictures']} pictures"
    typer.echo(f"{document['frechet']:.3f} ({counts}, {document['features']} {features} features)")


@report_errors
def clip(
    folder: Run,
    weights: Annotated[Path, typer.Option(metavar="DIR", help="Folder of a CLIP model.")],
    device: Device = "auto",
    json: Json = False,
) -> None:
    """CLIP score of a run's pictures with their prompts.

    The mean cosine, overall and by the benchmark's groups.
    """
    with quiet_libraries():
        import_silently()
        from stepvar.evaluation.scoring import clip_score
        from stepvar.metrics.features import ClipFeatures

        network = ClipFeatures(weights, ModelOptions(device=device).resolve_device())
        with display.progress_bar("reading", 1.0) as move:
            document = clip_score(folder, network, _advance(move))
    if json:
        display.print_json(document)
        return
    rows: list[display.Row] = [
        describe_interval(name, interval, 4) for name, interval in document["groups"].items()
    ]
    rows += [(), describe_interval("overall", document["clip"], 4)]
    typer.echo(display.format_table(("group", "CLIP score", "95 % interval"), rows))


@report_errors
def score(
    folder: Run,
    scorer: Annotated[
        str, typer.Option(metavar="COMMAND", help="Run as COMMAND IMAGES MANIFEST; prints one JSON document.")
    ],
    json: Json = False,
) -> None:
    """Score a run with an official scorer of its own environment.

    What it prints is kept in scores.json; docs/benchmarks.md has recipes.
    """
    with quiet_libraries():
        from stepvar.evaluation.scoring import official_score

        scores = official_score(folder, scorer)
    if json:
        display.print_json(scores)
        return
    typer.echo(f"{folder / 'scores.json'}")
    if isinstance(scores, dict):
        rows = [(name, f"{value:g}") for name, value in scores.items() if isinstance(value, (int, float))]
        if rows:
            typer.echo(display.format_table(("score", "value"), rows))


def _extractor(name: str, weights: Path | None, model: ModelOptions) -> Extractor:
    from stepvar.metrics.features import EXTRACTORS, load_extractor

    if name not in EXTRACTORS:
        raise InputError(f"Unknown --features {name!r}; known are {', '.join(EXTRACTORS)}.")
    import_silently()
    if name == "tokenizer":
        return load_extractor(name, None, open_pipeline(model).vae)
    return load_extractor(name, weights, device=model.resolve_device())


def _advance(move: Callable[[float, str], None] | None) -> Advance | None:
    return None if move is None else lambda part: move(part, "")


def _show(document: dict[str, Any], json: bool, note: str) -> None:
    if json:
        display.print_json(document)
        return
    rows = [
        describe_interval(name, interval, 4)
        for name, interval in document.items()
        if isinstance(interval, dict)
    ]
    typer.echo(display.format_table(("measure", "value", "95 % interval"), rows))
    typer.echo(note)
