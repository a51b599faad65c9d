"""Bodies of requests and answers: OpenAI's images API, and the fields that are ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["b64_json", "url"]

MAXIMUM_SEED = 2**53 - 1
"""Largest seed that JSON numbers carry exactly in every language."""

Text = Annotated[str, StringConstraints(min_length=1)]


class ImageRequest(BaseModel):
    """Body of POST /v1/images/generations.

    Fields that OpenAI's API has and that mean nothing here (`style`, `background`, `moderation`) are
    refused unless they have their neutral value; `user` is accepted and not stored.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text
    model: str | None = Field(None, description="Name of the model that is served, as /v1/models lists it.")
    n: int = Field(1, ge=1, description="Pictures; they have the seeds seed, seed + 1, ...")
    size: str = Field("auto", description="WIDTHxHEIGHT in pixels, a size that the model draws, or auto.")
    seed: int | None = Field(None, ge=0, le=MAXIMUM_SEED, description="Of the first picture; None draws one.")
    response_format: ResponseFormat = "b64_json"
    output_format: OutputFormat = "png"
    output_compression: int = Field(100, ge=0, le=100, description="Quality of jpeg and webp in percent.")
    stream: bool = Field(False, description="Server-sent events: previews, then the picture.")
    partial_images: int = Field(0, ge=0, le=64, description="Previews, at most one a scale; needs stream.")
    quality: str = Field("auto", description="auto, lossless (dense), high or fast.")
    pruning: str | None = Field(None, description="Name of a pruning preset, instead of quality.")
    negative_prompt: str | None = None
    guidance_scale: float | None = Field(None, ge=0.0, le=1000.0, allow_inf_nan=False)
    user: str | None = None
    style: Literal[None] = None
    background: Literal["auto", "opaque", None] = None
    moderation: Literal["auto", "low", None] = None


class ImageData(BaseModel):
    """One picture."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    pruning: str | None = None


class TokenDetails(BaseModel):
    """Tokens of the prompt."""

    image_tokens: int = 0
    text_tokens: int


class Usage(BaseModel):
    """Tokens: of the prompt, and those of the token maps that were computed."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, text: int, image: int) -> Usage:
        """From counts of text tokens and of computed image tokens."""
        return cls(
            input_tokens=text,
            input_tokens_details=TokenDetails(text_tokens=text),
            output_tokens=image,
            total_tokens=text + image,
        )


class ImagesResponse(BaseModel):
    """Answer of POST /v1/images/generations."""

    created: int
    data: list[ImageData]
    size: str
    output_format: OutputFormat
    usage: Usage


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Any answer that is an error."""

    error: ErrorBody


class Model(BaseModel):
    """A model of /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "stepvar"


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Answer of GET /health."""

    status: Literal["ok", "stopping"]
    model: str
    waiting: int
    drawing: int


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says about errors of a route."""
    return {status: {"model": ErrorResponse} for status in statuses}
