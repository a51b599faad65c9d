"""Server-sent events of a streamed request: previews after late scales, then the picture."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

from PIL import Image

from stepvar.serving.drawing import Cancelled, Drawn
from stepvar.serving.engine import Engine
from stepvar.serving.errors import RequestError
from stepvar.serving.requests import PreparedRequest
from stepvar.serving.schemas import Usage


def open_stream(prepared: PreparedRequest, engine: Engine, timeout: float) -> AsyncIterator[str]:
    """Queues a request for one picture, and gives its events as OpenAI's clients read them.

    A client that leaves closes the stream: the picture is then given up at its next scale.

    Args:
        prepared: A request for one picture.
        engine: Draws it.
        timeout: Seconds to the last event; then an error event ends the stream.

    Raises:
        RequestError: When the queue is full: at once, not in the stream.
    """
    loop = asyncio.get_running_loop()
    previews: asyncio.Queue[tuple[int, Image.Image] | None] = asyncio.Queue()
    (job,) = prepared.jobs

    def on_preview(index: int, image: Image.Image) -> None:
        loop.call_soon_threadsafe(previews.put_nowait, (index, image))

    job.on_preview = on_preview
    (future,) = engine.submit(prepared.jobs)
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(previews.put_nowait, None))
    return _events(prepared, previews, future, loop.time() + timeout)


async def _events(
    prepared: PreparedRequest,
    previews: asyncio.Queue[tuple[int, Image.Image] | None],
    future: Future[Drawn],
    deadline: float,
) -> AsyncIterator[str]:
    (job,) = prepared.jobs
    try:
        while True:
            left = deadline - asyncio.get_running_loop().time()
            preview = await asyncio.wait_for(previews.get(), max(left, 0.0))
            if preview is None:
                break
            index, image = preview
            yield _event(prepared, "image_generation.partial_image", image, partial_image_index=index)
        drawn = future.result()
        usage = Usage.of(prepared.text_tokens, drawn.tokens).model_dump()
        yield _event(prepared, "image_generation.completed", drawn.image, usage=usage, seed=job.seed)
    except RequestError as error:
        yield _error(error)
    except asyncio.TimeoutError:
        yield _error(RequestError(504, "The picture was not ready in time: try again later.", code="timeout"))
    except Cancelled:
        return
    finally:
        prepared.cancel()


def _event(prepared: PreparedRequest, kind: str, image: Image.Image, **own: Any) -> str:
    content = base64.b64encode(prepared.encode(image)).decode("ascii")
    body = {
        "type": kind,
        "b64_json": content,
        "created_at": int(time.time()),
        "size": prepared.size_name,
        "quality": "auto",
        "background": "opaque",
        "output_format": prepared.body.output_format,
        **own,
    }
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n"


def _error(error: RequestError) -> str:
    return f"event: error\ndata: {json.dumps({'type': 'error', **error.body()})}\n\n"
