"""`stepvar presets`: the named plans of each model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.options import Json
from stepvar.embedded import EMBEDDED_NAMES

if TYPE_CHECKING:
    from stepvar.models.spec import ModelSpec


@report_errors
def presets(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|DIR",
            help=f"infinity, hart, ..., {', '.join(EMBEDDED_NAMES)}, or a model's folder.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the plans that --pruning knows: what each does, and on what it was measured."""
    from stepvar.models import MODELS

    chosen = MODELS if model is None else (_find(model),)
    if json:
        display.print_json(
            {
                spec.key: {
                    name: {"description": preset.description, "measured_on": preset.measured_on}
                    for name, preset in spec.presets.items()
                }
                for spec in chosen
            }
        )
        return
    blocks = []
    for spec in chosen:
        width = max(map(len, spec.presets))
        lines = [spec.name]
        for name, preset in spec.presets.items():
            lines.append(f"  {name:<{width}}  {preset.description}")
            lines.append(f"  {'':<{width}}  measured on: {preset.measured_on}")
        blocks.append("\n".join(lines))
    typer.echo("\n\n".join(blocks))


def _find(model: str) -> ModelSpec:
    """The model of a name, or of a folder's index.

    Raises:
        InputError: When there is none.
    """
    from stepvar.checkpoints.pipeline_folder import PipelineFolder
    from stepvar.loading.opener import spec_of
    from stepvar.models import MODELS

    named = {spec.key: spec for spec in MODELS}
    named |= {
        name: named["infinitystar" if embedded == "video" else "infinity"]
        for name, embedded in EMBEDDED_NAMES.items()
    }
    if model in named:
        return named[model]
    if not Path(model).exists():
        raise InputError(f"Unknown model {model!r}; known are {', '.join(named)}, or give a model's folder.")
    return spec_of(PipelineFolder.open(Path(model)))
