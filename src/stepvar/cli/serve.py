"""`stepvar serve`: one model behind OpenAI's image routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import open_pipeline, quiet_libraries
from stepvar.cli.options import ModelOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stepvar.serving.settings import ServerSettings

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")]
MaxBatch = Annotated[int, typer.Option(min=1, max=1024, help="Pictures drawn at a time.")]
MaxWaiting = Annotated[int, typer.Option(min=1, help="Pictures that may wait; then clients get 429.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take; then it gets 504.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="STEPVAR_API_KEY", help="What clients must send as a bearer token. Default: none."),
]
Exact = Annotated[
    bool,
    typer.Option(help="A picture is the same alone and in a batch; off, batches are faster on a GPU."),
]
_INSTALL = "the server needs more packages: pip install 'stepvar[serve]'"


@report_errors
@with_option_groups
def serve(
    model: ModelOptions,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_batch: MaxBatch = 4,
    max_waiting: MaxWaiting = 64,
    timeout: Timeout = 300.0,
    exact: Exact = True,
    api_key: ApiKey = None,
) -> None:
    """Serve a model over HTTP: OpenAI's images API, previews, metrics.

    SIGTERM or Ctrl-C finishes what is being drawn, and refuses the rest.
    """
    try:
        import uvicorn

        from stepvar.serving.settings import ServerSettings
    except ImportError as error:
        raise InputError(f"'stepvar serve' is not installed whole ({error}): {_INSTALL}.") from error
    settings = ServerSettings(
        max_batch=max_batch, max_waiting=max_waiting, timeout=timeout, exact=exact, api_key=api_key
    )
    with quiet_libraries():
        app = _load(model, settings)
    typer.echo(
        f"http://{host}:{port}/v1 draws pictures; http://{host}:{port}/docs lists the routes.", err=True
    )
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)


def _load(model: ModelOptions, settings: ServerSettings) -> FastAPI:
    try:
        from stepvar.serving.app import create_app
        from stepvar.serving.drawing import Drawer
    except ImportError as error:
        raise InputError(f"'stepvar serve' is not installed whole ({error}): {_INSTALL}.") from error
    return create_app(Drawer(open_pipeline(model), settings.exact), served_name(model), settings)


def served_name(model: ModelOptions) -> str:
    """What a server calls its model."""
    if model.embedded:
        return "embedded" if model.model is None else str(model.model)
    return str(model.model).rstrip("/").rpartition("/")[2]
