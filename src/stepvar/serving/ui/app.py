"""The application of `stepvar ui`: the page, and the server's routes where the model draws pictures."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepvar.serving.app import add_image_routes, base_app
from stepvar.serving.drawing import Drawer, DrawSettings, Job
from stepvar.serving.server import Server
from stepvar.serving.settings import ServerSettings
from stepvar.serving.ui.page import STYLE, Page, theme

_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
)
"""What the page may load: nothing from other hosts, whatever its libraries would like to."""


def create_page_app(drawer: Drawer, name: str, settings: ServerSettings | None = None) -> FastAPI:
    """Builds the page around one model, of pictures or of videos.

    Args:
        drawer: The model.
        name: What it is called.
        settings: Limits, as for the server.

    Returns:
        An ASGI application; its engine runs from start-up to shutdown.
    """
    warm_up = Job(drawer.pipeline.example_prompt, None, 0, DrawSettings(None, "none", None, False))
    server = Server(drawer, name, settings or ServerSettings(), warm_up)
    app = base_app(server)
    if not drawer.pipeline.draws_videos:
        add_image_routes(app, server)
    app.add_middleware(OwnHostOnly)
    blocks = Page(server).build().queue(default_concurrency_limit=None, api_open=False)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme(),
        css_paths=STYLE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
        max_file_size=1,
    )


class OwnHostOnly:
    """Tells browsers to load nothing from other hosts."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_policy)
