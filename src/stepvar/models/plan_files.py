"""Plan files: a pruning method as JSON, and beside it the maps of a calibrated recovery as safetensors.

The JSON file holds {"format", "version", "pruning", "maps"}: `pruning` is what a picture's settings say of
its method, `maps` the name of the file beside it. Both are read strictly; nothing in them is executed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.json_files import read_json
from stepvar.checkpoints.paths import is_plain_name
from stepvar.checkpoints.reading import read_content
from stepvar.files import PathLike, write_files
from stepvar.generation.pruner import LateScalePruning
from stepvar.generation.schedule import Grid
from stepvar.generation.weight_sketch import ENTRIES, WeightSketch
from stepvar.models.output import as_json_value
from stepvar.pruning.calibrated import FittedMap
from stepvar.pruning.fastervar import FasterVAR
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.recovery import RECOVERIES, Calibrated, Recovery
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import StepVAR

SUFFIX = ".json"
FORMAT, VERSION = "stepvar-plan", 1

LARGEST_PLAN = 1 << 20
LARGEST_MAPS = 1 << 30
"""Bytes of the two files; two maps of a model 2,048 wide take a tenth of a gigabyte."""

MOST_MAPS = 32

_METHODS: Mapping[str, type[LateScalePruning]] = {
    kind.__name__: kind for kind in (StepVAR, FastVAR, FasterVAR)
}
_SCALE = re.compile(r"(?:([1-9]\d{0,3})x)?([1-9]\d{0,3})x([1-9]\d{0,3})")


def is_plan_file(pruning: Any) -> bool:
    """Whether what was passed as `pruning=` is the path of a plan file, or a text with its ending."""
    return isinstance(pruning, os.PathLike) or (isinstance(pruning, str) and pruning.endswith(SUFFIX))


def save_plan(method: LateScalePruning, path: PathLike) -> list[Path]:
    """Writes a plan file, and the maps of its recovery beside it where that is a calibrated one.

    Args:
        method: The plan; its rules must be known by name.
        path: Ends with .json; what is there is replaced.

    Returns:
        The files, the plan first.

    Raises:
        ValueError: When it is no method that can be written down.
        OSError: Naming a file that cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise ValueError(f"'{path}' is no name of a plan: let it end with {SUFFIX}.")
    if type(method).__name__ not in _METHODS:
        raise ValueError(f"A plan file holds {', '.join(_METHODS)}, no {type(method).__name__}.")
    for rule, registry in (("score", SCORERS), ("recovery", RECOVERIES)):
        own = getattr(method, rule, None)
        if own is not None and registry.name_of(own) not in registry:
            raise ValueError(f"The {rule} of this plan has no name: register it before the plan is written.")
    document = {"format": FORMAT, "version": VERSION, "pruning": as_json_value(method)}
    contents: dict[Path, bytes] = {}
    recovery = getattr(method, "recovery", None)
    if isinstance(recovery, Calibrated):
        maps = path.with_suffix(".safetensors")
        document["maps"] = maps.name
        contents[maps] = save(_tensors(recovery), {"format": FORMAT, "version": str(VERSION)})
    text = json.dumps(document, indent=1, allow_nan=False)
    write_files({path: f"{text}\n".encode(), **contents})
    return [path, *contents]


def load_plan(path: PathLike) -> LateScalePruning:
    """Reads a plan file.

    Raises:
        CheckpointError: When it, or the file of its maps, is missing, damaged, too large, of another version,
            or no plan.
    """
    path = Path(path).expanduser()
    document = read_json(path, "plan", LARGEST_PLAN)
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f'\'{path}\' is no plan: it lacks "format": "{FORMAT}"; take the file that '
            "'stepvar calibrate -o' wrote."
        )
    if document.get("version") != VERSION:
        raise CheckpointError(
            f"'{path}' is a plan of version {document.get('version')!r}; this stepvar reads "
            f"version {VERSION}."
        )
    try:
        return _method(path, document)
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"'{path}' holds no plan that can be used: {str(error).rstrip('.')}."
        ) from error


def _method(path: Path, document: Mapping[str, Any]) -> LateScalePruning:
    settings = document.get("pruning")
    if not isinstance(settings, dict) or settings.get("method") not in _METHODS:
        raise ValueError(f'its "pruning" names none of the methods {", ".join(_METHODS)}')
    kind = _METHODS[settings["method"]]
    known = {entry.name: entry for entry in fields(kind)}
    given: dict[str, Any] = {}
    for name, value in settings.items():
        # What a class says of all its objects is in settings too, and no field.
        if name == "method" or (name in kind.__dataclass_fields__ and name not in known):
            continue
        if name not in known:
            raise ValueError(f"{name} is no field of {kind.__name__}")
        given[name] = _recovery(path, document, value) if name == "recovery" else _value(name, value)
    return kind(**given)


def _value(name: str, value: Any) -> Any:
    """A field as the method has it: JSON's keys are texts, and its lists stand for tuples."""
    if isinstance(value, dict) and name != "score_options":
        return {int(key): _value(name, entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_value(name, entry) for entry in value)
    return value


def _recovery(path: Path, document: Mapping[str, Any], value: Any) -> str | Recovery:
    if not isinstance(value, dict):
        return str(value)
    settings = dict(value)
    name = settings.pop("name", None)
    kind = RECOVERIES.find(str(name))
    if kind is Calibrated:
        return _calibrated(path, document, settings)
    made: Recovery = kind(**settings)
    return made


def _calibrated(path: Path, document: Mapping[str, Any], settings: Mapping[str, Any]) -> Calibrated:
    beside, entries = document.get("maps"), settings.get("maps")
    # A name with a path in it could make us read any file of this machine.
    if not isinstance(beside, str) or not is_plain_name(beside) or not beside.endswith(".safetensors"):
        raise ValueError('its "maps" is no name of a .safetensors file beside it')
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_MAPS:
        raise ValueError(f"it lists no maps, or more than {MOST_MAPS}")
    file = path.parent / beside
    if file.exists() and file.resolve().parent != path.resolve().parent:
        raise CheckpointError(f"'{file}' leads outside the folder of its plan; do not trust it.")
    if file.is_file() and file.stat().st_size > LARGEST_MAPS:
        raise CheckpointError(
            f"'{file}' has {file.stat().st_size} bytes, too many for maps; do not trust it."
        )
    tensors = read_content(file)
    expected = {"sketch", *(f"{entry['scale']}.{part}" for entry in entries for part in ("weight", "bias"))}
    if tensors.keys() != expected:
        raise CheckpointError(f"'{file}' holds other maps than '{path}' names: take the two from one fit.")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.dim() > 2:
            raise CheckpointError(f"'{file}' holds {name} as {tensor.dtype}: it is damaged, fit it again.")
    maps = tuple(_map(entry, tensors) for entry in entries)
    if len({fitted.grid for fitted in maps}) < len(maps):
        raise ValueError("it has two maps of one scale")
    sketch = tensors["sketch"]
    if sketch.dim() != 2 or sketch.shape[1] != ENTRIES or not bool(sketch.isfinite().all()):
        raise CheckpointError(f"'{file}' does not say which weights it was fitted for; fit it again.")
    found = Calibrated(maps, WeightSketch(str(settings["layout"]), sketch.clone()), str(settings["score"]))
    if as_json_value(found.settings()) != dict(settings):
        raise CheckpointError(f"'{file}' is not the file that '{path}' was written with: fit it again.")
    return found


def _map(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FittedMap:
    scale, layers = entry["scale"], entry["layers"]
    first, last = layers
    weight, bias = (tensors[f"{scale}.{part}"].clone() for part in ("weight", "bias"))
    return FittedMap(
        _grid(scale), (int(first), int(last)), float(entry["ratio"]), float(entry["error"]), weight, bias
    )


def _grid(scale: str) -> Grid:
    found = _SCALE.fullmatch(scale)
    if found is None:
        raise ValueError(f"{scale!r} is no scale")
    frames, height, width = found.groups(default="1")
    return int(frames), int(height), int(width)


def _tensors(recovery: Calibrated) -> dict[str, Tensor]:
    if recovery.fitted_to is None or recovery.fitted_to.samples is None:
        raise ValueError("This recovery does not say which weights it was fitted to, so it cannot be stored.")
    tensors = {"sketch": recovery.fitted_to.samples}
    for fitted in recovery.maps:
        tensors[f"{fitted.name}.weight"], tensors[f"{fitted.name}.bias"] = fitted.weight, fitted.bias
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
