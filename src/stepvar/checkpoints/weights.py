"""Reading and writing weight files; what is read may come from anywhere, and nothing in it is executed.

PyTorch files are opened with ``weights_only=True`` and mapped into memory rather than copied, safetensors
files likewise, so a checkpoint costs memory only for what a conversion changes.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
TensorMap = dict[str, Tensor]
Routes = Sequence[Sequence[str]]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_SHOWN = 3
"""How many names an error lists before it only counts."""

_USABLE = "give a .safetensors file, a PyTorch file of plain tensors, or a folder with a shard index"
_NUMBER_FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# What the first bytes of files that are often mistaken for weights say about them.
_IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'",
    b"GGUF": f"is a GGUF file, which is not supported; {_USABLE}",
    b"<": "is a web page, not a checkpoint; the download probably failed, so fetch the file again",
}

_ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "a T5 text encoder": ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    "an Infinity transformer": ("text_proj_for_sos.ca.mat_kv.weight",),
    "an Infinity transformer in stepvar's own names": ("unconditional_text", "text_pool.query"),
    "an InfinityStar transformer": ("cfg_uncond", "sos_token", "text_proj.weight"),
    "a Switti transformer": ("word_embed.weight", "text_pooler.weight"),
    "a Switti transformer in stepvar's own names": ("text_pool.weight", "level_embedding.weight"),
    "a HART transformer": ("word_embed.weight", "context_embed.weight"),
    "a VAR transformer": ("word_embed.weight", "class_emb.weight"),
    "a VAR transformer in stepvar's own names": ("class_embedding.weight", "position_embedding"),
    "a visual tokenizer of HART": ("vae.encoder.conv_in.weight", "vae.quantize.embedding.weight"),
    "a visual tokenizer of the VAR family": ("encoder.conv_in.weight", "quantize.embedding.weight"),
    "a video tokenizer of InfinityStar": ("decoder.conv_in.conv.weight", "scale_learnable_parameters"),
    "a visual tokenizer of Infinity": ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"),
    "a visual tokenizer": ("encoder.conv_in.weight", "decoder.conv_in.weight"),
}
"""Architectures by keys that only they have together; of several that match, the first counts."""


class CheckpointError(ValueError):
    """A weight file cannot be used; the message says in one sentence why, and what would work."""


def name_architecture(keys: Iterable[str]) -> str | None:
    """Says in words what a state dict belongs to, e.g. "a VAR transformer"; None when unknown."""
    keys = set(keys)
    return next((name for name, signs in _ARCHITECTURES.items() if keys.issuperset(signs)), None)


@dataclass(frozen=True)
class Checkpoint:
    """Weights in one file or in several shards.

    Attributes:
        path: What was asked for, a file or a folder.
        files: The files that hold the weights.
        routes: Where inside a file the state dict may lie, see `read_tensors`.
        layout: Name -> tensor on the meta device: shapes and number formats of everything stored.
    """

    path: Path
    files: tuple[Path, ...]
    routes: Routes
    layout: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: str | os.PathLike[str], routes: Routes = ()) -> Checkpoint:
        """Finds the files and reads names and shapes, not the weights.

        Raises:
            CheckpointError: When something is missing, damaged or not a checkpoint.
        """
        path = Path(path).expanduser()
        files = weight_files(path)
        layout: TensorMap = {}
        for file in files:
            tensors = read_tensors(file, routes)
            twice = layout.keys() & tensors.keys()
            if twice:
                raise CheckpointError(f"'{path}' stores {_listing(twice)} in two shards; fetch it again.")
            layout.update({key: tensor.to("meta") for key, tensor in tensors.items()})
        return cls(path, tuple(files), tuple(tuple(route) for route in routes), layout)

    def shards(self) -> Iterator[TensorMap]:
        """The tensors of one file after the other, mapped into memory where the format allows it."""
        for file in self.files:
            yield read_tensors(file, self.routes)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint: itself, or the shards of a folder.

    Raises:
        CheckpointError: When there is nothing to read.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise CheckpointError(f"There is no file or folder '{path}'; {_USABLE}.")
    if not path.is_dir():
        raise CheckpointError(f"'{path}' is neither a file nor a folder; {_USABLE}.")
    for suffix in (".safetensors.index.json", ".index.json"):
        indices = sorted(path.glob(f"*{suffix}"))
        if indices:
            return _shards_of(indices[0])
    for suffixes in ((".safetensors",), WEIGHT_SUFFIXES):
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
        # Averaged weights beside the plain ones are read by those who ask for them by name.
        found = [file for file in found if not file.name.startswith("ema_")] or found
        if len(found) == 1:
            return found
        if found:
            names = _listing(file.name for file in found)
            raise CheckpointError(f"'{path}' has {names} but no shard index; give the path of one file.")
    parts = [child.parent.name for child in sorted(path.glob("*/config.json"))]
    hint = f"give one of its folders {_listing(parts)}" if parts else _USABLE
    raise CheckpointError(f"The folder '{path}' contains no weights; {hint}.")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a file name, got {value!r}")
    return value


def _shards_of(index: Path) -> list[Path]:
    try:
        names = sorted(set(map(_text, json.loads(index.read_text("utf-8"))["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"'{index}' is not a readable shard index; fetch it again.") from error
    # A name with a path in it could make us read any file of this machine.
    outside = [name for name in names if not name or name in (".", "..") or re.search(r"[/\\:\0]", name)]
    if outside:
        raise CheckpointError(f"'{index}' points outside its folder to {outside[0]!r}; do not trust it.")
    if not names:
        raise CheckpointError(f"'{index}' lists no shards; fetch it again.")
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"'{index.parent}' lacks {len(missing)} of its {len(files)} shards ({_listing(missing)}); "
            "fetch the missing files."
        )
    return files


def read_tensors(file: Path, routes: Routes = ()) -> TensorMap:
    """Reads the state dict of one file.

    Args:
        file: A PyTorch or safetensors file.
        routes: Keys to follow to the state dict inside, e.g. ``[("trainer", "gpt_fsdp")]``; the first
            route that exists is taken, and without any the file itself is the state dict.

    Returns:
        Name -> tensor on the CPU, in the number format of the file.

    Raises:
        CheckpointError: When the file is damaged, executable, or holds anything but tensors there.
    """
    content = _read(file)
    state = next(
        (found for route in routes if isinstance(found := _follow(content, route), Mapping)), content
    )
    if not isinstance(state, Mapping):
        raise CheckpointError(f"'{file}' holds a {type(state).__name__}, not a state dict; {_USABLE}.")
    if not state:
        raise CheckpointError(f"'{file}' holds no tensors; {_USABLE}.")
    others = [str(key) for key, value in state.items() if not (isinstance(key, str) and _is_dense(value))]
    if others:
        raise CheckpointError(
            f"'{file}' is not a plain state dict ({_listing(others)} is no named tensor); "
            "save the state dict alone."
        )
    return dict(state)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _follow(content: Any, route: Sequence[str]) -> Any:
    for key in route:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _read(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"'{file}' is empty; fetch it again.")
    # A safetensors file starts with the length of its header, which may look like any other character.
    is_safetensors = head[4:9] == b"\0\0\0\0{"
    for start, what in _IMPOSTORS.items():
        if head.lstrip().startswith(start) and not is_safetensors:
            raise CheckpointError(f"'{file}' {what}.")
    if is_safetensors or file.suffix == ".safetensors":
        try:
            return load_file(file)
        except Exception as error:  # besides its own type, whatever a damaged header leads to
            raise CheckpointError(f"'{file}' is truncated or damaged ({error}); fetch it again.") from error
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"'{file}' is not a checkpoint; {_USABLE}.")
    return _read_pytorch(file, is_archive=head.startswith(b"PK"))


def _read_pytorch(file: Path, is_archive: bool) -> Any:
    try:
        # Files in the format before PyTorch 1.6 are no archives and cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # the reader's own errors have no common type
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise CheckpointError(
                f"'{file}' contains Python code or objects ({named[1]}), which were not executed; "
                "give a file with nothing but tensors, best .safetensors."
            ) from error
        # The list of contents is at the end of an archive, so a cut one is not even recognised as such.
        is_cut = not zipfile.is_zipfile(file) if is_archive else "unexpected EOF" in str(error)
        if is_cut or isinstance(error, EOFError):
            raise CheckpointError(f"'{file}' is truncated or damaged; fetch it again.") from error
        raise CheckpointError(f"'{file}' is not a checkpoint; {_USABLE}.") from error


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
    sentences = [f"{len(keys)} {what} ({_listing(keys)})" for what, keys in problems.items() if keys]
    if sentences:
        raise CheckpointError(
            f"{source} does not fit the model: of {len(expected)} tensors, {'; '.join(sentences)}."
        )


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def saved_config(path: Path, class_name: str) -> dict[str, Any] | None:
    """The configuration in a folder that `save_pretrained` of a class wrote; None for anything else.

    Raises:
        CheckpointError: When there is a configuration that cannot be read.
    """
    file = path / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{file}' is not a readable configuration; fetch it again.") from error
    if not isinstance(config, dict) or config.get("_class_name") != class_name:
        return None
    return {key: value for key, value in config.items() if not key.startswith("_")}


def build_empty(kind: type[Model], config: Mapping[str, Any], source: str) -> Model:
    """Builds a model on the meta device: names and shapes, no memory.

    Raises:
        CheckpointError: When the configuration does not describe such a model.
    """
    try:
        with torch.device("meta"):
            return kind(**config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{source} does not describe an {kind.__name__}: {error}") from error


def fill(
    model: nn.Module,
    checkpoint: Checkpoint,
    rename: Callable[[TensorMap], TensorMap] = dict,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Gives a model built on the meta device its weights, one shard at a time, never held twice.

    Args:
        model: The model; modules it lists as `_keep_in_fp32_modules` become float32 whatever `dtype` is.
        checkpoint: The weights, already checked with `require_same_layout`.
        rename: Turns a part of the checkpoint's state dict into a part of the model's.
        dtype: Number format of the weights; None keeps the file's.
        device: Where the weights go; None is the CPU.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for shard in checkpoint.shards():
        part = rename(shard)
        del shard  # so that a tensor that is converted below leaves memory at once
        for key in part:
            target = dtype if kept.isdisjoint(key.split(".")) else torch.float32
            part[key] = part[key].to(device=device, dtype=target)
        model.load_state_dict(part, strict=False, assign=True)


def transformers_folder(path: str | os.PathLike[str], example: str) -> Path:
    """The folder of a transformers model.

    Args:
        path: Where it should be.
        example: Name of such a model, for the error.

    Raises:
        CheckpointError: When it is none.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"'{folder}' is not a folder of a transformers model (it has no config.json); "
            f"give a local folder such as {example}."
        )
    return folder


def first_line(error: Exception) -> str:
    """What another library's error says, in brief."""
    return str(error).strip().partition("\n")[0].rstrip(".")
