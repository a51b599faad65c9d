"""Models and the weights they are given: compared before anything is allocated, then filled by shards."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from stepvar.checkpoints.errors import CheckpointError, first_line, listing
from stepvar.checkpoints.json_files import read_json
from stepvar.checkpoints.lock import LOADING
from stepvar.checkpoints.weights import Checkpoint, TensorMap

Model = TypeVar("Model", bound=nn.Module)

_NUMBER_FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_LONGEST_LIST = 1_000
"""Entries of a list in a configuration; the longest of a published model has 15."""

_LARGEST_NUMBER = 1 << 20
"""Largest whole number in a configuration: a width, a size of a codebook. Lists of that length cost nothing
yet; what the weights do not justify is refused while the model is built."""

_LARGEST_ENTRY = 1 << 16
"""Largest number in such a list: sides of grids, multipliers, channels."""

_MODULES_PER_TENSOR = 20
_CHUNK = 1 << 18
"""Elements for each thread that are copied and looked at together: they stay in the processor's caches in
between. Fewer would be nearer, but every chunk costs microseconds of calls."""

_LARGE_PAGES = 1 << 22
"""Bytes from which numpy asks the system for large pages, where Linux grants them on request."""

_ALIGNMENT = 64
"""Bytes, as torch aligns its own memory."""

_MAPPED: ContextVar[list[Checkpoint] | None] = ContextVar("mapped", default=None)


def require_same_layout(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Checks names, shapes and number formats of a state dict before anything is loaded.

    Args:
        found: The state dict; shapes are enough, so it may be on the meta device.
        expected: A state dict as the model needs it, likewise.
        source: What the error calls the state dict, e.g. the quoted file name.

    Raises:
        CheckpointError: Naming what is missing, unexpected, of another shape, or quantised.
    """
    shared = [key for key in expected if key in found]
    shapes = [
        f"{key} is {list(found[key].shape)} instead of {list(expected[key].shape)}"
        for key in shared
        if found[key].shape != expected[key].shape
    ]
    formats = [f"{key} is {found[key].dtype}" for key in shared if found[key].dtype not in _NUMBER_FORMATS]
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": shapes,
        "in a number format that cannot be used": formats,
    }
    sentences = [f"{len(keys)} {what} ({listing(keys)})" for what, keys in problems.items() if keys]
    if sentences:
        raise CheckpointError(
            f"{source} does not fit the model: of {len(expected)} tensors, {'; '.join(sentences)}."
        )


def saved_config(path: Path, kind: type[nn.Module]) -> dict[str, Any] | None:
    """The configuration in a folder that `save_pretrained` of a class wrote; None for anything else.

    Raises:
        CheckpointError: When there is a configuration that cannot be read, or has numbers and lists that no
            such model has.
    """
    file = path / "config.json"
    if not file.is_file():
        return None
    config = read_json(file)
    # Visual tokenizers were called so in the folders of earlier versions.
    if config.get("_class_name") not in (kind.__name__, kind.__name__.replace("VAE", "Tokenizer")):
        return None
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
            raise CheckpointError(
                f"'{file}' sets {key} to {value}, more than any model has; do not trust it."
            )
        _require_short(value, f"'{file}'", key)
    return config


def _require_short(value: Any, source: str, key: str) -> None:
    """Refuses lists that would take minutes to go through."""
    if not isinstance(value, list):
        return
    if len(value) > _LONGEST_LIST:
        raise CheckpointError(f"{source} lists {len(value)} {key}, more than any model has; do not trust it.")
    for entry in value:
        if isinstance(entry, int) and entry > _LARGEST_ENTRY:
            raise CheckpointError(f"{source} has {entry} in {key}, more than any model; do not trust it.")
        _require_short(entry, source, key)


def build_empty(
    kind: Callable[..., Model],
    config: Mapping[str, Any],
    source: str,
    weights: Mapping[str, Tensor] | None = None,
) -> Model:
    """Builds a model on the meta device: names and shapes, no memory.

    Args:
        kind: Its class.
        config: Arguments of the constructor.
        source: What errors call where they come from.
        weights: What it will be given. Building stops as soon as the model has more parameters than that;
            None for a configuration that was inferred from the weights themselves.

    Raises:
        CheckpointError: When the configuration does not describe such a model.
    """
    name = getattr(kind, "__name__", "model")
    try:
        with LOADING, _limited(weights, source), torch.device("meta"):
            return kind(**config)
    except CheckpointError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError, LookupError) as error:
        raise CheckpointError(f"{source} does not describe an {name}: {first_line(error)}.") from error


@contextmanager
def _limited(weights: Mapping[str, Tensor] | None, source: str) -> Iterator[None]:
    """Stops a constructor of this thread that makes more parameters, or many more modules, than there are
    weights: a configuration may ask for a billion layers."""
    if weights is None:
        yield
        return
    message = f"{source} describes a larger model than its {len(weights)} weights make up; fetch both again."
    thread, parameters, modules = threading.get_ident(), 0, 0

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += parameter is not None and threading.get_ident() == thread
        # A tied parameter is registered twice and stored once.
        if parameters > 2 * len(weights) + 10:
            raise CheckpointError(message)

    def count_module(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal modules
        modules += threading.get_ident() == thread
        if modules > _MODULES_PER_TENSOR * len(weights) + 1_000:
            raise CheckpointError(message)

    handles = (
        registration.register_module_parameter_registration_hook(count_parameter),
        registration.register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def build_saved(kind: type[Model], checkpoint: Checkpoint, config: Mapping[str, Any]) -> Model:
    """A model on the meta device for a folder that `save_pretrained` wrote, checked against its weights.

    Raises:
        CheckpointError: When the configuration describes another model than the weights make up.
    """
    source = f"'{checkpoint.path}'"
    for name, hint in get_type_hints(kind.__init__).items():
        if name in config and not _fits(config[name], hint):
            raise CheckpointError(f"{source} sets {name} to {config[name]!r}; {_hint_name(hint)} is needed.")
    model = build_empty(kind, config, source, checkpoint.layout)
    require_same_layout(checkpoint.layout, model.state_dict(), source)
    return model


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration is what a constructor's annotation says."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(_fits(entry, parts[0]) for entry in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _hint_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.", "")


@contextmanager
def mapped_weights() -> Iterator[None]:
    """Lets `fill` leave weights in their files, mapped into memory, where no number format changes.

    For a conversion, which reads every weight once: a checkpoint of tens of gigabytes then takes no memory.

    Raises:
        CheckpointError: At the end, when one of the files was changed in the meantime.
    """
    opened: list[Checkpoint] = []
    token = _MAPPED.set(opened)
    try:
        yield
    finally:
        _MAPPED.reset(token)
    for checkpoint in opened:
        checkpoint.require_unchanged()


def fill(
    model: nn.Module,
    checkpoint: Checkpoint,
    rename: Callable[[TensorMap], TensorMap] = dict,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Gives a model built on the meta device its weights, one shard at a time, never held twice.

    Weights are copied out of their files, since a file that is written over while it is mapped would change
    them or end the process; see `mapped_weights` for the exception.

    Args:
        model: The model; modules it lists as `_keep_in_fp32_modules` become float32 whatever `dtype` is.
        checkpoint: The weights, already checked with `require_same_layout`.
        rename: Turns a part of the checkpoint's state dict into a part of the model's.
        dtype: Number format of the weights; None keeps the file's.
        device: Where the weights go; None is the CPU.

    Raises:
        CheckpointError: When a weight is not finite, or a file is changed meanwhile.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    mapped = _MAPPED.get()
    if mapped is not None:
        mapped.append(checkpoint)
    for shard in checkpoint.shards():
        part = rename(shard)
        del shard  # so that a tensor that is converted below leaves memory at once
        for key in part:
            target = dtype if kept.isdisjoint(key.split(".")) else torch.float32
            copied = copy_finite(part[key], target, f"{key} of '{checkpoint.path}'", copy=mapped is None)
            part[key] = copied.to(device=device)
        model.load_state_dict(part, strict=False, assign=True)


def copy_finite(tensor: Tensor, dtype: torch.dtype | None, name: str, copy: bool = True) -> Tensor:
    """A tensor in another number format, as a copy or as it is, whose values were all looked at.

    A sum is not finite where a term is not, or where it overflows, and then every value is asked: that is an
    order faster than asking always (`benchmarks/finite_scan.py` measures it).

    Args:
        tensor: On the CPU, of any shape.
        dtype: Number format of the result; None keeps the tensor's.
        name: What the error calls it.
        copy: Whether to copy where the number format stays.

    Raises:
        CheckpointError: When a value is NaN or infinite, or its number format cannot be computed with.
    """
    if tensor.is_floating_point() and tensor.dtype not in _NUMBER_FORMATS:
        raise CheckpointError(
            f"The weight {name} is {str(tensor.dtype).removeprefix('torch.')}, a number format that cannot "
            "be used; give the file in float16, bfloat16 or float32."
        )
    dtype = dtype or tensor.dtype
    copy = copy or dtype != tensor.dtype
    result = new_memory(tensor.shape, dtype) if copy else tensor
    size = _CHUNK * torch.get_num_threads()
    for chunk, source in zip(result.reshape(-1).split(size), tensor.reshape(-1).split(size), strict=True):
        if copy:
            chunk.copy_(source)
        if not math.isfinite(chunk.sum()) and not torch.isfinite(chunk).all():
            bad = "NaN" if torch.isnan(chunk).any() else "infinite"
            raise CheckpointError(f"The weight {name} is {bad} in places; fetch the file again.")
    return result


def new_memory(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor of undefined values, in large pages where there are such.

    The system fills new memory page by page when it is first written, which takes longer than the copy of
    the weights does: one page of 2 MiB costs little more than one of the 512 of 4 KiB that it stands for.
    """
    size = shape.numel() * dtype.itemsize
    if size < _LARGE_PAGES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)
