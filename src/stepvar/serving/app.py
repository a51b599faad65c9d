"""The FastAPI application: OpenAI's image routes, health and metrics."""

# No postponed annotations here: FastAPI reads the types of local functions.

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from stepvar.serving.drawing import Drawer
from stepvar.serving.engine import Engine
from stepvar.serving.errors import RequestError
from stepvar.serving.metrics import ServerMetrics
from stepvar.serving.middleware import Gate
from stepvar.serving.pictures import PictureStore
from stepvar.serving.requests import PreparedRequest, finish, prepare
from stepvar.serving.schemas import (
    Health,
    ImageData,
    ImageRequest,
    ImagesResponse,
    Model,
    ModelList,
    Usage,
    error_responses,
)
from stepvar.serving.settings import ServerSettings
from stepvar.serving.streaming import open_stream

logger = logging.getLogger(__name__)


def create_app(drawer: Drawer, name: str, settings: ServerSettings | None = None) -> FastAPI:
    """Builds the application around one model.

    Args:
        drawer: The model.
        name: What the model is called in /v1/models.
        settings: Limits.

    Returns:
        An ASGI application; its engine runs from start-up to shutdown.
    """
    settings = settings or ServerSettings()
    metrics = ServerMetrics()
    engine = Engine(drawer, settings, metrics)
    store = PictureStore(settings.kept_pictures)
    created = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="stepvar",
        description="Pictures from next-scale-prediction models, by OpenAI's image routes.",
        lifespan=lifespan,
    )
    app.state.engine, app.state.store = engine, store
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    _add_error_handlers(app)

    @app.get("/health")
    async def health() -> Health:
        """Whether the server takes requests, and how busy it is."""
        return Health(
            status="stopping" if engine.stopping else "ok",
            model=name,
            waiting=engine.waiting,
            drawing=engine.drawing,
        )

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(engine.waiting), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", responses=error_responses(401))
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[Model(id=name, created=created)])

    @app.get("/v1/models/{model}", responses=error_responses(401, 404))
    async def model(model: str) -> Model:
        """One model, by name."""
        if model != name:
            raise RequestError(
                404, f"There is no model {model!r} here; {name!r} is served.", code="not_found"
            )
        return Model(id=name, created=created)

    @app.get("/v1/files/{file}", response_class=Response, responses=error_responses(401, 404))
    async def files(file: str) -> Response:
        """A picture that was answered by URL."""
        media_type, content = store.get(file)
        return Response(content, media_type=media_type)

    @app.post(
        "/v1/images/generations",
        response_model=ImagesResponse,
        responses=error_responses(400, 401, 404, 413, 429, 500, 503, 504),
    )
    async def generations(body: ImageRequest, request: Request) -> Any:
        """Draws pictures of a prompt."""
        started = time.monotonic()
        prepared = await asyncio.to_thread(prepare, body, drawer, name, settings)
        if body.stream:
            events = open_stream(prepared, engine, settings.timeout)
            return StreamingResponse(events, media_type="text/event-stream", headers=_NO_CACHE)
        try:
            drawn = await finish(prepared, engine, settings.timeout, request.is_disconnected)
        finally:
            prepared.cancel()
        metrics.request_seconds.observe(time.monotonic() - started)
        return await asyncio.to_thread(_answer, prepared, drawn, store, str(request.base_url))

    return app


_NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def _answer(prepared: PreparedRequest, drawn: list[Any], store: PictureStore, base: str) -> ImagesResponse:
    body = prepared.body
    data = []
    for job, picture in zip(prepared.jobs, drawn, strict=True):
        content = prepared.encode(picture.image)
        if body.response_format == "url":
            place = {"url": f"{base}v1/files/{store.add(content, body.output_format)}"}
        else:
            place = {"b64_json": base64.b64encode(content).decode("ascii")}
        data.append(ImageData(seed=job.seed, pruning=job.settings.pruning, **place))
    return ImagesResponse(
        created=int(time.time()),
        data=data,
        size=prepared.size_name,
        output_format=body.output_format,
        usage=Usage.of(prepared.text_tokens, sum(picture.tokens for picture in drawn)),
    )


def _error_response(error: RequestError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        where = f"{place}: " if place else "The body is no valid request: "
        return _error_response(
            RequestError(400, f"{where}{first['msg']}.", param=place or None, code="invalid")
        )

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: POST /v1/images/generations draws pictures, GET /docs lists all routes."
        return JSONResponse(
            RequestError(error.status_code, message).body(), error.status_code, headers=error.headers
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.exception("unexpected error on %s", request.url.path, exc_info=error)
        return _error_response(RequestError(500, "The server failed on this request; its log says why."))
