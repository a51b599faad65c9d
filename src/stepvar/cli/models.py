"""Opening a model for a command: the embedded one, or a folder that is checked before it is loaded."""

from __future__ import annotations

import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stepvar.cli.errors import InputError, is_out_of_memory, one_line
from stepvar.cli.options import OPTION_NAMES, CascadeOptions, ModelOptions

if TYPE_CHECKING:
    import torch

    from stepvar.models.pipeline import NextScalePipeline

_REMEDY = "give a folder that 'stepvar convert' or save_pretrained wrote"

_LIBRARIES = ("diffusers", "transformers")
"""Libraries besides our own whose classes a pipeline folder may name."""

_ASPECT_TOLERANCE = 0.1

DRAFTED_LEAVES = 2
"""Scales that the first of two models leaves to the second one."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the libraries' warnings off the terminal; our own warnings become notes on stderr."""
    # Commands read local files only; this keeps the libraries from asking a hub about them.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
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
    folder = choice.model if embedded is None else None
    index = None if folder is None else read_index(folder)
    if embedded is not None:
        _require_embedded(embedded)
    device = choice.resolve_device()
    dtype = choice.resolve_dtype(device)
    import_silently()
    pipeline: NextScalePipeline
    if folder is None or index is None:
        from stepvar.embedded import load_embedded

        pipeline = load_embedded(embedded or "pictures", dtype)
    else:
        pipeline = _open_folder(folder, index, dtype)
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


def _require_embedded(name: str) -> None:
    from stepvar.embedded import MODELS

    if not MODELS[name].is_dir():
        raise InputError(
            "This installation has no such embedded model (its weights are missing): install the package "
            "again, or name a model with --model DIR."
        )


def _open_folder(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> NextScalePipeline:
    """Loads a pipeline folder after checking every part of it; nothing in it is executed.

    The class is the one that the folder's index names.

    Raises:
        InputError, CheckpointError: When something is missing, damaged, executable, or of another model.
    """
    from stepvar.checkpoints.components import load_reference
    from stepvar.checkpoints.errors import CheckpointError
    from stepvar.models.registry import TEXT_ENCODERS

    kind = _pipeline_class(folder, index)
    parts = {name: _check_part(folder, name, index.get(name)) for name in _part_names(kind)}
    given: dict[str, Any] = {}
    try:
        for name, part in parts.items():
            if part in TEXT_ENCODERS:
                # transformers itself goes on with random numbers where weights are missing.
                given[name] = load_reference(TEXT_ENCODERS[part])(folder / name, dtype)
        pipeline = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **given)
        _try_text(pipeline)
        pipeline.summary()
    except Exception as error:  # the libraries raise almost any type for a damaged folder
        if isinstance(error, (InputError, CheckpointError)) or is_out_of_memory(error):
            raise
        raise InputError(
            f"'{folder}' cannot be loaded ({type(error).__name__}: {one_line(str(error))}); {_REMEDY}."
        ) from error
    return pipeline


def read_index(folder: Path) -> dict[str, Any]:
    """What a pipeline folder's model_index.json holds.

    Raises:
        InputError: When it is missing or damaged.
    """
    file = folder / "model_index.json"
    if not folder.exists():
        raise InputError(f"There is no folder '{folder}'; {_REMEDY}.")
    if not folder.is_dir():
        raise InputError(f"'{folder}' is a file; convert it with 'stepvar convert', and give the folder.")
    if not file.is_file():
        raise InputError(f"'{folder}' is no pipeline folder (it has no model_index.json); {_REMEDY}.")
    try:
        index = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{file}' is damaged ({one_line(str(error))}); {_REMEDY}.") from error
    if not isinstance(index, dict):
        raise InputError(f"'{file}' is damaged (it holds a {type(index).__name__}); {_REMEDY}.")
    return index


def _pipeline_class(folder: Path, index: Mapping[str, Any]) -> type[NextScalePipeline]:
    import stepvar
    from stepvar.models.pipeline import NextScalePipeline

    name = index.get("_class_name")
    found = getattr(stepvar, name, None) if isinstance(name, str) and name in stepvar.__all__ else None
    if isinstance(found, type) and issubclass(found, NextScalePipeline):
        return found
    known = [entry for entry in stepvar.__all__ if entry.endswith("Pipeline")]
    raise InputError(f"'{folder}' holds a {name!r}; known pipelines are {', '.join(known)}.")


def _part_names(kind: type[NextScalePipeline]) -> Sequence[str]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    required = [entry.name for entry in parameters if entry.default is inspect.Parameter.empty]
    return [name for name in required if name != "self"] + list(kind._optional_components)


def _check_part(folder: Path, name: str, entry: Any) -> str | None:
    """Checks one component of a pipeline folder; returns its class's name, None where it is left out."""
    if not isinstance(entry, list) or len(entry) != 2:
        raise InputError(f"'{folder / 'model_index.json'}' does not say what {name!r} is; {_REMEDY}.")
    library, kind = entry
    if library is None and kind is None:
        return None
    if not isinstance(library, str) or not isinstance(kind, str):
        raise InputError(f"'{folder / 'model_index.json'}' does not say what {name!r} is; {_REMEDY}.")
    ours = library == "stepvar" or library.startswith("stepvar.models.")
    if not ours and library not in _LIBRARIES:
        raise InputError(
            f"'{folder}' names code of {library!r} for its {name!r}, which was not run; {_REMEDY}."
        )
    if not (folder / name).is_dir():
        raise InputError(f"'{folder}' lacks its part {name!r}; {_REMEDY}.")
    if ours:
        _check_our_part(folder / name, library, kind)
    return kind


def _check_our_part(path: Path, library: str, kind: str) -> None:
    """Checks names, shapes and formats of a component's weights against its configuration."""
    from stepvar.checkpoints.layouts import build_empty, require_same_layout, saved_config
    from stepvar.checkpoints.weights import Checkpoint

    try:
        found = getattr(import_module(library), kind)
    except (ImportError, AttributeError) as error:
        raise InputError(f"'{path}' is a {kind!r}, which this version does not know.") from error
    config = saved_config(path, found)
    if config is None:
        raise InputError(f"'{path}' has no configuration of {kind}; {_REMEDY}.")
    checkpoint = Checkpoint.open(path)
    # A quantised copy and the like would be read as the plain file's replacement.
    require_same_layout(checkpoint.layout, build_empty(found, config, f"'{path}'").state_dict(), f"'{path}'")


def _try_text(pipeline: NextScalePipeline) -> None:
    """Runs the text encoders on two tokens: a damaged configuration shows only then."""
    for suffix in ("", "_2"):
        encoder = getattr(pipeline, f"text_encoder{suffix}", None)
        tokenizer = getattr(pipeline, f"tokenizer{suffix}", None)
        if encoder is not None and tokenizer is not None:
            _try_encoder(encoder, tokenizer)


def _try_encoder(encoder: Any, tokenizer: Any) -> None:
    import torch

    with torch.no_grad():
        encoder(input_ids=torch.zeros(1, 2, dtype=torch.long, device=encoder.device))
    largest = max(tokenizer.get_vocab().values())
    # T5's own table is padded, never shorter than its tokenizer's.
    if largest >= encoder.config.vocab_size:
        raise InputError(
            f"The tokenizer has {largest + 1} words, but the text encoder only {encoder.config.vocab_size}; "
            f"{_REMEDY}."
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
