"""ASGI middleware of the server: limit of bodies, key, count of answers."""

from __future__ import annotations

import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepvar.serving.errors import RequestError
from stepvar.serving.metrics import ServerMetrics
from stepvar.serving.settings import ServerSettings

OPEN_PATHS = ("/health", "/metrics")
"""Paths that need no key, for load balancers and collectors."""


class Gate:
    """Refuses large bodies and wrong keys before a route sees them, and counts every answer.

    A body is read whole, up to the limit, and handed on: a route never waits for a slow client's bytes.

    Args:
        app: What is wrapped.
        settings: Limit of bodies, and the key.
        metrics: Counts answers by path and status.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            self._check_key(scope)
            body = await self._read_body(receive)
        except RequestError as error:
            answer = JSONResponse(error.body(), error.status, headers=error.headers)
            await answer(scope, receive, counted)
            return
        await self.app(scope, _replayed(body, receive), counted)

    def _check_key(self, scope: Scope) -> None:
        key = self.settings.api_key
        if key is None or scope["path"] in OPEN_PATHS:
            return
        header = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, given = header.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key.encode()):
            raise RequestError(
                401, "The API key is missing or wrong: send it as a bearer token.", code="invalid_api_key"
            )

    async def _read_body(self, receive: Receive) -> list[Message]:
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self.settings.max_body:
                raise RequestError(
                    413,
                    f"The request's body is larger than {self.settings.max_body} bytes: shorten it.",
                    code="too_large",
                )
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """Gives messages that were read already, then what comes after them."""
    left = iter(messages)

    async def replay() -> Message:
        for message in left:
            return message
        return await receive()

    return replay
