"""Server-sent events of a streamed request: previews after late scales, then the picture."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image

from stepvar.serving.drawing import Cancelled, Drawn
from stepvar.serving.engine import Engine
from stepvar.serving.errors import RequestError
from stepvar.serving.following import FollowedJob, Preview
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
    (job,) = prepared.jobs
    return _events(prepared, FollowedJob(job, engine, timeout))


async def _events(prepared: PreparedRequest, followed: FollowedJob) -> AsyncIterator[str]:
    try:
        async for event in followed.events():
            if isinstance(event, Drawn):
                usage = Usage.of(prepared.text_tokens, event.tokens).model_dump()
                seed = prepared.jobs[0].seed
                yield _event(prepared, "image_generation.completed", event.image, usage=usage, seed=seed)
            elif isinstance(event, Preview):
                kind = "image_generation.partial_image"
                yield _event(prepared, kind, event.image, partial_image_index=event.index)
    except RequestError as error:
        yield _error(error)
    except Cancelled:
        return
    finally:
        # The inner generator may be closed later than this one.
        followed.cancel()


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
