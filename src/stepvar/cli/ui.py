"""`stepvar ui`: one model as a web page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import open_pipeline, quiet_libraries
from stepvar.cli.options import ModelOptions
from stepvar.cli.serve import Host, MaxWaiting, Port, Timeout, served_name

if TYPE_CHECKING:
    from fastapi import FastAPI

_KEPT = 256
"""Pictures that the page's galleries can show; older ones are gone."""


@report_errors
@with_option_groups
def ui(
    model: ModelOptions,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    max_waiting: MaxWaiting = 64,
    timeout: Timeout = 300.0,
) -> None:
    """Open a web page for a model: dense and accelerated side by side, kept tokens, times.

    SIGTERM or Ctrl-C finishes what is being drawn, and refuses the rest.
    """
    with quiet_libraries():
        app = _load(model, max_waiting, timeout)
    import uvicorn

    typer.echo(f"The page is at http://{host}:{port}/", err=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=5)


def _load(model: ModelOptions, max_waiting: int, timeout: float) -> FastAPI:
    try:
        from stepvar.serving.drawing import Drawer
        from stepvar.serving.settings import ServerSettings
        from stepvar.serving.ui.app import create_page_app
    except ImportError as error:
        raise InputError(
            f"'stepvar ui' is not installed whole ({error}): the page needs more packages: "
            "pip install 'stepvar[ui]'."
        ) from error
    settings = ServerSettings(max_waiting=max_waiting, timeout=timeout, kept_pictures=_KEPT)
    return create_page_app(Drawer(open_pipeline(model)), served_name(model), settings)
