"""Requests for pictures: checked against the model and the limits, turned into jobs, waited for."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from PIL import Image

from stepvar.serving.drawing import Drawer, Drawn, DrawSettings, Job, encode, preview_steps
from stepvar.serving.engine import Engine
from stepvar.serving.errors import RequestError
from stepvar.serving.schemas import ImageRequest
from stepvar.serving.settings import ServerSettings

_POLL = 0.1
"""Seconds between two looks at whether a client is still there."""

FRESH_SEEDS = 2**31
"""Seeds that are drawn where none was given lie below."""

_LARGEST_SIDE = 65_536


@dataclass
class PreparedRequest:
    """A request that can be drawn.

    Attributes:
        body: As it came.
        jobs: One a picture.
        size: Width and height in pixels.
        text_tokens: Tokens of the prompt.
    """

    body: ImageRequest
    jobs: list[Job]
    size: tuple[int, int]
    text_tokens: int

    @property
    def size_name(self) -> str:
        """WIDTHxHEIGHT."""
        return f"{self.size[0]}x{self.size[1]}"

    def encode(self, image: Image.Image) -> bytes:
        """A picture in the format that was asked for."""
        return encode(image, self.body.output_format, self.body.output_compression)

    def cancel(self) -> None:
        """Gives up what is not drawn yet."""
        for job in self.jobs:
            job.cancelled.set()


def prepare(body: ImageRequest, drawer: Drawer, model: str, settings: ServerSettings) -> PreparedRequest:
    """Checks a request and turns it into jobs.

    Raises:
        RequestError: Naming the field that is wrong.
    """
    if body.model is not None and body.model != model:
        raise RequestError(
            404,
            f"There is no model {body.model!r} here; {model!r} is served.",
            param="model",
            code="not_found",
        )
    _check_limits(body, settings)
    wanted = DrawSettings(
        size=parse_size(body.size),
        pruning=_choose_pruning(body, drawer),
        guidance_scale=body.guidance_scale,
        has_negative=bool(body.negative_prompt),
    )
    first = secrets.randbelow(FRESH_SEEDS) if body.seed is None else body.seed
    try:
        previews = preview_steps(drawer.scales(wanted), body.partial_images)
    except ValueError as error:
        raise RequestError(400, str(error), param="size", code="invalid") from error
    jobs = [
        Job(body.prompt, body.negative_prompt or None, first + index, wanted, previews)
        for index in range(body.n)
    ]
    try:
        drawer.check(jobs[0])
    except ValueError as error:
        raise RequestError(400, str(error), code="invalid") from error
    return PreparedRequest(body, jobs, wanted.size or drawer.own_size, drawer.text_tokens(body.prompt))


def check_text(name: str, text: str, settings: ServerSettings) -> None:
    """Checks a text that the model will read.

    Args:
        name: What messages call it: prompt or negative_prompt.

    Raises:
        RequestError: When it is empty, too long, or no text.
    """
    if name == "prompt" and not text.strip():
        raise RequestError(400, "prompt is empty: describe the picture in words.", param="prompt")
    if len(text) > settings.max_prompt:
        raise RequestError(
            400, f"{name} has {len(text)} characters; at most {settings.max_prompt} are read.", param=name
        )
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise RequestError(400, f"{name} is not valid Unicode text.", param=name)


def _check_limits(body: ImageRequest, settings: ServerSettings) -> None:
    check_text("prompt", body.prompt, settings)
    check_text("negative_prompt", body.negative_prompt or "", settings)
    if body.n > settings.max_pictures:
        raise RequestError(
            400, f"n is {body.n}; at most {settings.max_pictures} pictures are drawn a request.", param="n"
        )
    if body.stream and body.n > 1:
        raise RequestError(400, "stream draws one picture: leave n out, or stream.", param="n")
    if body.partial_images and not body.stream:
        raise RequestError(400, "partial_images needs stream: set stream to true.", param="partial_images")
    if body.stream and body.response_format == "url":
        raise RequestError(400, "A stream carries pictures as b64_json only.", param="response_format")


def parse_size(size: str) -> tuple[int, int] | None:
    """Width and height of WIDTHxHEIGHT; None for auto.

    Raises:
        RequestError: When it is neither.
    """
    if size == "auto":
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size, re.ASCII)
    if match is None or max(int(match[1]), int(match[2])) > _LARGEST_SIDE:
        raise RequestError(
            400, f"size is {size[:40]!r}; give WIDTHxHEIGHT in pixels, or auto.", param="size", code="invalid"
        )
    return int(match[1]), int(match[2])


def _choose_pruning(body: ImageRequest, drawer: Drawer) -> str:
    """Name of the preset that a request asks for.

    Raises:
        RequestError: When it is unknown, or the model cannot give the level of quality.
    """
    if body.pruning is not None:
        if body.quality != "auto":
            raise RequestError(
                400, "pruning and quality were both given: give one of them.", param="pruning", code="invalid"
            )
        known = ["none", *drawer.pipeline.presets]
        if body.pruning not in known:
            raise RequestError(
                400, f"There is no pruning preset {body.pruning[:40]!r}; there are {', '.join(known)}.",
                param="pruning", code="invalid",
            )  # fmt: skip
        return body.pruning
    level = "lossless" if body.quality == "auto" else body.quality
    if level not in drawer.levels:
        raise RequestError(
            400,
            f"This model has no quality {level[:40]!r}; it has auto, {', '.join(drawer.levels)}.",
            param="quality",
            code="invalid",
        )
    return drawer.levels[level]


async def finish(
    prepared: PreparedRequest, engine: Engine, timeout: float, gone: Callable[[], Awaitable[bool]]
) -> list[Drawn]:
    """Queues a request's jobs and waits for its pictures.

    Args:
        timeout: Seconds to wait.
        gone: Whether the client has left.

    Raises:
        RequestError: When the queue is full, time is up, or the client has left.
    """
    futures = [asyncio.wrap_future(future) for future in engine.submit(prepared.jobs)]
    pictures = asyncio.gather(*futures)
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        while not pictures.done():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise RequestError(
                    504,
                    f"The picture was not ready after {timeout:g} seconds: try again later.",
                    code="timeout",
                )
            await asyncio.wait([pictures], timeout=min(_POLL, left))
            if not pictures.done() and await gone():
                raise RequestError(499, "The client has left.", code="cancelled")
    except BaseException:
        prepared.cancel()
        pictures.cancel()
        raise
    return list(pictures.result())
