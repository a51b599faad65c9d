"""Text encoders and their tokenizers from transformers folders of unknown origin.

transformers asks on stdin whether to run a folder's code, opens files that a configuration or an index
names, draws random numbers in place of missing weights, and takes kernels from the hub where a configuration
asks for them. So configuration and weights are read here, and it is given what was checked.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepvar.checkpoints.errors import CheckpointError, first_line
from stepvar.checkpoints.json_files import INDEX_BYTES, read_json
from stepvar.checkpoints.layouts import build_empty, copy_finite
from stepvar.checkpoints.lock import LOADING
from stepvar.checkpoints.paths import is_plain_name, require_inside
from stepvar.checkpoints.weights import Checkpoint, TensorMap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PathLike = str | os.PathLike[str]

_CODE_FIELDS = (
    "auto_map",
    "custom_pipelines",
    "quantization_config",
    "transformers_weights",
    "configuration_files",
)
"""Fields of a configuration that name code or other files, or that change what the weights mean."""

_LABELS = ("id2label", "label2id", "num_labels", "task_specific_params")
_ROTARY_FIELDS = ("rope_scaling", "rope_parameters", "rope_theta")

_PREFIXES = ("model.", "language_model.", "text_model.", "transformer.")
"""What files put before the names of a text model, depending on the model it is a part of."""

GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""The class of a plain tokenizer.json: the second is what transformers 5 calls the first."""

_LAYERS = 1_000
"""A number of layers that costs nothing to count up to; beyond it, the weights must justify it."""

_MOST_BYTES = 1 << 30
_FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_text_model(
    path: PathLike,
    kinds: Mapping[str, str],
    example: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """Loads a text model, strictly.

    Args:
        path: A local transformers folder.
        kinds: Type of model, as a configuration has it -> class of transformers that is built for it.
        example: Name of a folder that would do, for errors.
        dtype: Number format; None keeps that of the configuration, or else of the weights.
        device: Where the weights go; None is the CPU.

    Returns:
        The model in evaluation mode, with copies of the weights.

    Raises:
        CheckpointError: When it is of another type, damaged, incomplete, not finite, or names code or files
            outside its folder.
    """
    path = transformers_folder(path, example)
    require_inside(path)
    with _described(f"The text encoder in '{path}'"):
        fields = read_json(path / "config.json")
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(
            f"'{path}' holds a model of type {kind!r}, not {_family(kinds)}; give the folder of {example}."
        )
    refuse_code(path / "config.json", fields)
    with _described(f"The text encoder in '{path}'"), LOADING:
        checkpoint = Checkpoint.open(path, unwrap=False)
        model = _load(path, kinds[kind], fields, checkpoint, dtype).eval()
    return model if device is None else model.to(device)  # type: ignore[arg-type]  # its wrapper has no type


@contextmanager
def _described(what: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Turns errors of transformers and of reading, which have no common type, into one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CheckpointError) and str(error).startswith(what):
            raise
        reason = first_line(error)
        ending = "." if isinstance(error, CheckpointError) else f"; {remedy}."
        raise CheckpointError(f"{what} cannot be loaded ({reason}){ending}") from error


def _family(kinds: Mapping[str, str]) -> str:
    """What errors call the accepted types: T5 for "t5", Qwen2 for "qwen2", CLIP for "clip"."""
    first = next(iter(kinds))
    return first.upper() if len(first) <= 4 else first.capitalize()


def _load(
    path: Path, name: str, fields: Mapping[str, Any], checkpoint: Checkpoint, dtype: torch.dtype | None
) -> PreTrainedModel:
    import transformers

    model_class = getattr(transformers, name)
    config = _checked_config(model_class.config_class, fields, path, len(checkpoint.layout))
    empty = build_empty(model_class, {"config": config}, f"'{path}'", checkpoint.layout)
    names = list(empty.state_dict())
    _require_enough(empty, checkpoint)
    target = dtype or _stored_format(fields, checkpoint)
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=_weights_of(names, checkpoint),
        torch_dtype=target,
        output_loading_info=True,
    )
    for problem, meaning in (("missing_keys", "lacks"), ("mismatched_keys", "has of another shape")):
        # transformers would go on with random numbers in their place.
        if found := sorted(map(str, report.get(problem, ()))):
            raise CheckpointError(
                f"The text encoder in '{path}' {meaning} {len(found)} weights, e.g. {found[0]}; "
                "fetch it again."
            )
    loaded: PreTrainedModel = model
    return loaded


def _require_enough(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Refuses a model of more values than its files hold; missing names are reported after loading."""
    stored = {_bare(name): tensor.numel() for name, tensor in checkpoint.layout.items()}
    for name, tensor in model.state_dict().items():
        if tensor.numel() > stored.get(_bare(name), sum(stored.values())):
            raise CheckpointError(
                f"The text encoder in '{checkpoint.path}' describes a larger model than its weights make up "
                f"({name}); fetch it again."
            )


def _weights_of(names: Collection[str], checkpoint: Checkpoint) -> TensorMap:
    """Copies of the weights that a model needs, under its own names."""
    own = {_bare(name): name for name in names}
    state: TensorMap = {}
    for shard in checkpoint.shards():
        for name, tensor in shard.items():
            if (bare := _bare(name)) in own:
                state[own[bare]] = copy_finite(tensor, None, f"{name} of '{checkpoint.path}'")
    return state


def _bare(name: str) -> str:
    """A name without what stands for the model that a text model is a part of."""
    while prefix := next((entry for entry in _PREFIXES if name.startswith(entry)), None):
        name = name.removeprefix(prefix)
    return name


def _stored_format(fields: Mapping[str, Any], checkpoint: Checkpoint) -> torch.dtype:
    named = fields.get("dtype") or fields.get("torch_dtype")
    if named in _FORMATS:
        return _FORMATS[str(named)]
    stored = (tensor.dtype for tensor in checkpoint.layout.values())
    return next((dtype for dtype in stored if dtype.is_floating_point), torch.float32)


def _checked_config(
    config_class: type[PretrainedConfig], fields: Mapping[str, Any], path: Path, weights: int
) -> PretrainedConfig:
    """A configuration from the fields of a file that describe a network, and from no others."""
    # The text half of a model that also sees has fields of its own, within or beside those of the whole.
    text = fields.get("text_config")
    if isinstance(text, dict) and fields.get("model_type") != config_class.model_type:
        refuse_code(path / "config.json", text)
        fields = {**{key: fields[key] for key in _ROTARY_FIELDS if key in fields}, **text}
    known = config_class().to_dict().keys() - {"architectures", "transformers_version", "dtype"} - {*_LABELS}
    chosen: dict[str, Any] = {}
    for key, value in fields.items():
        if key.startswith("_") or key in (*_LABELS, "dtype", "torch_dtype", "model_type"):
            continue
        if isinstance(value, int) and ("layers" in key or "depth" in key) and value > max(weights, _LAYERS):
            raise CheckpointError(
                f"The text encoder in '{path}' has {key} {value}, but its files hold {weights} weights; "
                "fetch it again."
            )
        # What transformers does not know it keeps as an attribute, and it looks some of those up: a text
        # there may name an implementation, or a repository.
        if key in known or key in _ROTARY_FIELDS or not _has_text(value):
            chosen[key] = value
    return config_class(**chosen)


def _has_text(value: Any) -> bool:
    if isinstance(value, dict):
        return True
    return isinstance(value, str) or (isinstance(value, list) and any(map(_has_text, value)))


def refuse_code(file: Path, fields: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` when a configuration names code or files."""
    named = next((field for field in _CODE_FIELDS if fields.get(field)), None)
    if named is not None:
        raise CheckpointError(
            f"'{file}' has {named}, which names code or other files and was not followed; remove it, or give "
            "the folder of the plain model."
        )


def load_text_tokenizer(
    path: PathLike, classes: Collection[str], example: str, kind: str | None = None, **settings: Any
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer of transformers.

    Args:
        path: A local folder.
        classes: Names of the classes that its configuration may name.
        example: Name of a folder that would do, for errors.
        kind: The one of them that it is; None takes what its configuration names.
        settings: Arguments of its `from_pretrained`.

    Raises:
        CheckpointError: When the folder holds no such tokenizer, or names code or files outside.
    """
    folder = Path(path).expanduser()
    with _described(f"The text tokenizer in '{folder}'"):
        named = check_tokenizer_folder(folder, classes, example)
    import transformers

    # transformers 5 would take a model's own class for any tokenizer beside that model.
    generic = (kind or named) in GENERIC_TOKENIZERS
    chosen = "PreTrainedTokenizerFast" if generic else kind or "AutoTokenizer"
    remedy = f"give a folder with a tokenizer.json such as {example}, or install sentencepiece and protobuf"
    with _described(f"The text tokenizer in '{folder}'", remedy), LOADING:
        tokenizer: PreTrainedTokenizerBase = getattr(transformers, chosen).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **settings
        )
    return tokenizer


def check_tokenizer_folder(folder: Path, classes: Collection[str], example: str) -> str | None:
    """Checks that nothing in a tokenizer's folder names code, or a file outside.

    Returns:
        The class that its configuration names; None for none.

    Raises:
        CheckpointError: When something does, or the class is none of `classes`.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder '{folder}'; give a local folder such as {example}.")
    require_inside(folder)
    for file in folder.iterdir():
        if file.stat().st_size > _MOST_BYTES and file.suffix in (".json", ".txt", ".model"):
            raise CheckpointError(f"'{file}' is too large for a part of a tokenizer; do not trust it.")
    named = None
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if not file.is_file():
            continue
        fields = read_json(file, largest=INDEX_BYTES)
        if name != "config.json":
            _refuse_outside_names(file, fields)
        refuse_code(file, {key: fields.get(key) for key in ("auto_map", "custom_pipelines")})
        named = fields.get("tokenizer_class") or named
    if named is not None and named not in classes:
        raise CheckpointError(
            f"'{folder}' holds a tokenizer of class {named!r}; known are {', '.join(sorted(classes))}."
        )
    return named


def _refuse_outside_names(file: Path, fields: Mapping[str, Any]) -> None:
    """Refuses names of files in a tokenizer's configuration that are more than names."""
    if fields.get("init_inputs"):
        raise CheckpointError(f"'{file}' has init_inputs, which no current tokenizer has; do not trust it.")
    for key, value in fields.items():
        # Published tokenizers carry the place where the tokens once lay; transformers does not read it.
        if key == "special_tokens_map_file":
            continue
        names = value if isinstance(value, list) and key.endswith("_files") else [value]
        if key.endswith(("_file", "_files")) and any(
            not is_plain_name(name) for name in names if name is not None
        ):
            raise CheckpointError(f"'{file}' names the file {value!r} as its {key}; do not trust it.")


def transformers_folder(path: PathLike, example: str) -> Path:
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
