"""The FastAPI application: OpenAI's image routes, health and metrics."""

# No postponed annotations here: FastAPI reads the types of local functions.

import asyncio
import base64
import logging
import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from stepvar.serving.drawing import Drawer
from stepvar.serving.errors import RequestError
from stepvar.serving.middleware import Gate
from stepvar.serving.pictures import PictureStore, file_response
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
from stepvar.serving.server import Server
from stepvar.serving.settings import ServerSettings
from stepvar.serving.streaming import open_stream

logger = logging.getLogger(__name__)


def create_app(drawer: Drawer, name: str, settings: ServerSettings | None = None) -> FastAPI:
    """Builds the application around one model of pictures.

    Args:
        drawer: The model.
        name: What the model is called in /v1/models.
        settings: Limits.

    Returns:
        An ASGI application; its engine runs from start-up to shutdown.

    Raises:
        ValueError: When the model draws videos.
    """
    drawer.require_pictures()
    server = Server(drawer, name, settings or ServerSettings())
    app = base_app(server)
    add_image_routes(app, server)
    return app


def base_app(server: Server) -> FastAPI:
    """The application without images routes: health, metrics, files, limits, errors."""
    app = FastAPI(
        title="stepvar",
        description="Pictures from next-scale-prediction models, by OpenAI's image routes.",
        lifespan=server.lifespan,
    )
    app.state.server = server
    app.add_middleware(Gate, settings=server.settings, metrics=server.metrics)
    _add_error_handlers(app)
    _add_state_routes(app, server)
    _add_file_route(app, server)
    return app


def add_image_routes(app: FastAPI, server: Server) -> None:
    """Adds OpenAI's routes."""
    _add_model_routes(app, server)
    _add_generation_route(app, server)


def _add_state_routes(app: FastAPI, server: Server) -> None:
    engine = server.engine

    @app.get("/health")
    async def health() -> Health:
        """Whether the server takes requests, and how busy it is."""
        return Health(
            status="stopping" if engine.stopping else "ok",
            model=server.name,
            waiting=engine.waiting,
            drawing=engine.drawing,
        )

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(server.metrics.text(engine.waiting), media_type="text/plain; version=0.0.4")


def _add_file_route(app: FastAPI, server: Server) -> None:
    @app.get("/v1/files/{file}", response_class=Response, responses=error_responses(401, 404))
    async def files(file: str, request: Request) -> Response:
        """A picture that was answered by URL."""
        media_type, content = server.store.get(file)
        return file_response(media_type, content, request.headers.get("range"))


def _add_model_routes(app: FastAPI, server: Server) -> None:
    name = server.name

    @app.get("/v1/models", responses=error_responses(401))
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[Model(id=name, created=server.created)])

    @app.get("/v1/models/{model}", responses=error_responses(401, 404))
    async def model(model: str) -> Model:
        """One model, by name."""
        if model != name:
            raise RequestError(
                404, f"There is no model {model!r} here; {name!r} is served.", code="not_found"
            )
        return Model(id=name, created=server.created)


def _add_generation_route(app: FastAPI, server: Server) -> None:
    engine, settings = server.engine, server.settings

    @app.post(
        "/v1/images/generations",
        response_model=ImagesResponse,
        responses=error_responses(400, 401, 404, 413, 429, 500, 503, 504),
    )
    async def generations(body: ImageRequest, request: Request) -> Any:
        """Draws pictures of a prompt."""
        started = time.monotonic()
        prepared = await asyncio.to_thread(prepare, body, server.drawer, server.name, settings)
        if body.stream:
            events = open_stream(prepared, engine, settings.timeout)
            return StreamingResponse(events, media_type="text/event-stream", headers=_NO_CACHE)
        try:
            drawn = await finish(prepared, engine, settings.timeout, request.is_disconnected)
        finally:
            prepared.cancel()
        server.metrics.request_seconds.observe(time.monotonic() - started)
        return await asyncio.to_thread(_answer, prepared, drawn, server.store, str(request.base_url))


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
        data.append(ImageData(seed=job.seed, pruning=str(job.settings.pruning), **place))
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
