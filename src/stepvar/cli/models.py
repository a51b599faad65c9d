"""Opening a model for a command: an embedded one, or whatever `stepvar.load` opens."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stepvar.cli.errors import InputError, one_line
from stepvar.cli.options import OPTION_NAMES, CascadeOptions, ModelOptions

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline

_ASPECT_TOLERANCE = 0.1

DRAFTED_LEAVES = 2
"""Scales that the first of two models leaves to the second one."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the libraries' warnings off the terminal; our own warnings become notes on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    notes, ours = _Notes(), logging.getLogger("stepvar")
    ours.addHandler(notes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ours.removeHandler(notes)


class _Notes(logging.Handler):
    """Shows each warning of ours once, as a note."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = one_line(record.getMessage())
        if message not in self.shown:
            self.shown.add(message)
            typer.echo(f"Note: {message}", err=True)


def import_silently() -> None:
    """Imports the model libraries, which takes seconds, and turns off their logs and bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def open_pipeline(choice: ModelOptions) -> NextScalePipeline:
    """Loads the model that the options ask for, onto its device.

    Raises:
        InputError, CheckpointError: When it cannot be used.
    """
    # What can be refused at once is refused before anything heavy is imported.
    embedded = choice.embedded
    if embedded is None:
        _require_source(choice.model)
    else:
        _require_embedded(embedded)
    device = choice.resolve_device()
    dtype = choice.resolve_dtype(device)
    import_silently()
    pipeline: NextScalePipeline
    if embedded is not None:
        from stepvar.embedded import load_embedded

        pipeline = load_embedded(embedded, dtype)
    else:
        from stepvar.loading.opener import load

        pipeline = load(str(choice.model), dtype=dtype, **choice.companions)
    pipeline.set_progress_bar_config(disable=True)
    if choice.offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def open_cascade(
    model: ModelOptions, cascade: CascadeOptions, size: Mapping[str, Any]
) -> tuple[NextScalePipeline, dict[str, Any]]:
    """The pipeline to call, and what to call it with, for one model or two.

    Args:
        model: The first model; the only one, where `cascade` names no other.
        cascade: The second one.
        size: Keyword arguments of the pipeline that set the size.

    Raises:
        InputError, ValueError: When one cannot be used, or there are no scales to share.
    """
    cascade.check()
    pipeline = open_pipeline(model)
    if cascade.cascade is None:
        return pipeline, {}
    from stepvar.generation.cascade import Cascade

    second = open_second(model, cascade.cascade)
    scales = len(pipeline.schedule(**size))
    drafted = max(scales - DRAFTED_LEAVES, 1) if cascade.drafted is None else cascade.drafted
    return second, {"cascade": Cascade(pipeline, drafted)}


def open_second(model: ModelOptions, folder: Path) -> NextScalePipeline:
    """Loads the second model of a cascade, as the first one is loaded.

    Raises:
        InputError: When it cannot be used, or its kind knows no cascades.
    """
    second = open_pipeline(replace(model, model=folder))
    check_options(second, {"cascade": None})
    return second


def _require_source(source: Path | None) -> None:
    """Refuses at once what can be neither opened nor fetched."""
    from stepvar.checkpoints.hub import is_repository

    if source is not None and not source.expanduser().exists() and not is_repository(source):
        raise InputError(
            f"There is no file or folder '{source}'; give one, a repository of the hub as owner/name, or a "
            "folder that 'stepvar convert' or save_pretrained wrote."
        )


def _require_embedded(name: str) -> None:
    from stepvar.embedded import MODELS

    if not MODELS[name].is_dir():
        raise InputError(
            "This installation has no such embedded model (its weights are missing): install the package "
            "again, or name a model with --model DIR."
        )


def require_prompts(prompts: Sequence[str]) -> None:
    """Refuses, before anything is loaded, prompts that no model can read.

    Raises:
        InputError: When one is empty, or no text.
    """
    for prompt in prompts:
        if not prompt.strip():
            raise InputError("The prompt is empty: describe the picture in words.")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"The prompt {prompt!r} is not valid UTF-8 text.") from error


def note_other_aspect(pipeline: NextScalePipeline, size: Mapping[str, Any]) -> None:
    """Tells on stderr when the nearest schedule is far from the aspect ratio that was asked for."""
    asked = size.get("aspect_ratio")
    if asked is None:
        return
    height, width = pipeline.pixels(pipeline.schedule(**size))
    if abs(width / height / asked - 1.0) > _ASPECT_TOLERANCE:
        typer.echo(f"Note: this model's nearest to that aspect ratio is {width}x{height} pixels.", err=True)


def check_options(pipeline: NextScalePipeline, arguments: Mapping[str, Any]) -> None:
    """Refuses options that mean nothing to a model.

    Args:
        arguments: Keyword arguments for the pipeline's call.

    Raises:
        InputError: Naming the options.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    foreign = sorted({OPTION_NAMES[name] for name in arguments if name not in known})
    if foreign:
        which = f"{' and '.join(foreign)} mean{'s' if len(foreign) == 1 else ''}"
        raise InputError(f"{which} nothing to {type(pipeline).__name__}: leave it out.")


def check_prompts(pipeline: NextScalePipeline, prompts: Sequence[str]) -> None:
    """Refuses what a model cannot draw, and prompts that it would cut.

    Raises:
        ValueError: Saying what is wrong.
    """
    pipeline.check_prompts(prompts)
