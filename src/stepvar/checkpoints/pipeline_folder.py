"""Pipeline folders of unknown origin: everything is checked before anything in them is built.

A folder holds `model_index.json`, which names the pipeline, its settings and a class for every component, and
one folder a component. Which classes there may be is a table of the pipeline's, never what the index says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepvar.checkpoints.components import ComponentSpec, load_reference
from stepvar.checkpoints.errors import CheckpointError, listing
from stepvar.checkpoints.json_files import read_json
from stepvar.checkpoints.layouts import build_saved, fill, saved_config
from stepvar.checkpoints.paths import require_inside
from stepvar.checkpoints.transformers_models import (
    load_text_tokenizer,
)
from stepvar.checkpoints.weights import Checkpoint, variants

INDEX = "model_index.json"

REMEDY = "give a folder that 'stepvar convert' or save_pretrained wrote"

_LIBRARIES = ("stepvar", "transformers", "diffusers")
_SMALLEST, _LARGEST = 1e-6, 1e6
"""Bounds of a setting that is not 0: beyond them, logits and guidance overflow."""

Dtypes = torch.dtype | Mapping[str, torch.dtype] | None
"""Number format of all components, or by name with "default" for the others; None keeps the files'."""


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that a pipeline was saved to.

    Attributes:
        path: The folder.
        index: What its index says.
        variant: Which of several weight files of a component are read, "fp16" for example; None for those
            without such a name.
    """

    path: Path
    index: Mapping[str, Any]
    variant: str | None = None

    @classmethod
    def open(cls, path: Path, variant: str | None = None) -> PipelineFolder:
        """Reads the index.

        Raises:
            CheckpointError: When there is no folder, or no index that can be read.
        """
        file = path / INDEX
        if not path.exists():
            raise CheckpointError(f"There is no folder '{path}'; {REMEDY}.")
        if not path.is_dir():
            raise CheckpointError(f"'{path}' is a file, not a pipeline folder; {REMEDY}.")
        if not file.is_file():
            raise CheckpointError(f"'{path}' is no pipeline folder (it has no {INDEX}); {REMEDY}.")
        return cls(path, read_json(file, "index"), variant)

    @property
    def pipeline_name(self) -> str | None:
        """Name of the pipeline class: the last part, where a folder brings a file for diffusers along."""
        name = self.index.get("_class_name")
        if isinstance(name, list) and name:
            name = name[-1]
        return name if isinstance(name, str) else None

    def check(
        self, components: Mapping[str, ComponentSpec], given: Mapping[str, Any]
    ) -> dict[str, str | None]:
        """Checks the class of every component, and that nothing in its folder leads out of it.

        Args:
            components: The pipeline's table.
            given: Components that are not taken from the folder.

        Returns:
            Class name by component; None for one that is left out.

        Raises:
            CheckpointError: When one is missing, of a class outside the table, or names other files.
        """
        checked: dict[str, str | None] = {}
        for name, spec in components.items():
            if name in given:
                continue
            checked[name] = class_name = self._class_name(name, spec)
            if class_name is None:
                continue
            folder = self.path / name
            if not folder.is_dir():
                raise CheckpointError(f"'{self.path}' lacks its part {name!r}; {REMEDY}.")
            _require_below(folder, self.path)
            require_inside(folder)
        self._require_variant([self.path / name for name, class_name in checked.items() if class_name])
        return checked

    def _require_variant(self, folders: Sequence[Path]) -> None:
        """Refuses a variant that none of the components has; one without it is read as it is."""
        offered = set[str]().union(*map(variants, folders))
        if self.variant is not None and self.variant not in offered:
            found = listing(sorted(offered)) or "none"
            raise CheckpointError(f"'{self.path}' has no variant {self.variant!r}; it has {found}.")

    def _class_name(self, name: str, spec: ComponentSpec) -> str | None:
        entry = self.index.get(name, [None, None] if spec.optional else None)
        undefined = CheckpointError(f"'{self.path / INDEX}' does not say what {name!r} is; {REMEDY}.")
        if not isinstance(entry, list) or len(entry) != 2:
            raise undefined
        library, class_name = entry
        if library is None and class_name is None:
            if not spec.optional:
                raise CheckpointError(f"'{self.path}' lacks its part {name!r}; {REMEDY}.")
            return None
        if not isinstance(library, str) or not isinstance(class_name, str):
            raise undefined
        if library.partition(".")[0] not in _LIBRARIES:
            raise CheckpointError(
                f"'{self.path}' names code of {library!r} for its {name!r}, which was not run; {REMEDY}."
            )
        if class_name not in spec.class_names:
            known = ", ".join(dict.fromkeys(entry.partition(":")[2] for entry in spec.classes))
            raise CheckpointError(
                f"'{self.path}' holds a {class_name!r} as its {name!r}, and nothing of it was run; this "
                f"pipeline takes {known}."
            )
        return class_name

    def load(self, name: str, spec: ComponentSpec, class_name: str, dtype: Dtypes) -> Any:
        """Loads a component whose class was checked.

        Raises:
            CheckpointError: When it is damaged, incomplete, or not what its configuration says.
        """
        folder = self.path / name
        if spec.is_ours:
            return load_saved(spec.load_class(), folder, _dtype_of(dtype, name), self.variant)
        if spec.loader is not None:
            return load_reference(spec.loader)(folder, _dtype_of(dtype, name))
        return load_text_tokenizer(folder, spec.class_names, class_name, kind=class_name)

    def require_known(self, names: Collection[str]) -> None:
        """Refuses entries of the index that would have no effect: parts and settings that nothing reads.

        Args:
            names: Components and settings of the pipeline; names with an underscore are diffusers' own notes.

        Raises:
            CheckpointError: Naming the first one.
        """
        absent = (None, [None, None])
        unknown = [
            key
            for key, value in self.index.items()
            if key not in names and not key.startswith("_") and value not in absent
        ]
        if unknown:
            raise CheckpointError(
                f"'{self.path / INDEX}' has {unknown[0]!r}, and a {self.pipeline_name} has no such part "
                "or setting: remove the entry, or load the folder with the version that wrote it."
            )

    def settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's constructor that the index sets.

        Args:
            defaults: All of them, with their defaults.

        Raises:
            CheckpointError: Naming one that no model can be run with.
        """
        chosen = {name: self.index[name] for name in defaults if name in self.index}
        for name, value in chosen.items():
            _check_setting(f"'{self.path / INDEX}'", name, value, defaults[name])
        return chosen


def load_saved(
    kind: type[nn.Module], folder: Path, dtype: torch.dtype | None = None, variant: str | None = None
) -> nn.Module:
    """Loads a component of ours from the folder that its `save_pretrained` wrote, in evaluation mode.

    Raises:
        CheckpointError: When names, shapes or formats of its weights are not those of its configuration, or
            weights are not finite.
    """
    config = saved_config(folder, kind)
    if config is None:
        raise CheckpointError(f"'{folder}' has no configuration of {kind.__name__}; {REMEDY}.")
    checkpoint = Checkpoint.open(folder, unwrap=False, variant=variant)
    model = build_saved(kind, checkpoint, config)
    fill(model, checkpoint, dtype=dtype)
    return model.eval()


def check_saved(kind: type[nn.Module], folder: Path, variant: str | None = None) -> None:
    """The checks of `load_saved`, but for the values of the weights.

    Raises:
        CheckpointError: As there.
    """
    config = saved_config(folder, kind)
    if config is None:
        raise CheckpointError(f"'{folder}' has no configuration of {kind.__name__}; {REMEDY}.")
    build_saved(kind, Checkpoint.open(folder, unwrap=False, variant=variant), config)


def check_text_side(encoder: Any, tokenizer: Any) -> None:
    """Runs a tokenizer and a text encoder: a damaged configuration shows only then.

    Raises:
        CheckpointError: When the tokenizer has more words than the encoder.
    """
    largest = max(tokenizer.get_vocab().values())
    # T5's own table is padded, never shorter than its tokenizer's.
    if largest >= encoder.config.vocab_size:
        raise CheckpointError(
            f"The tokenizer has {largest + 1} words, but the text encoder only {encoder.config.vocab_size}; "
            f"{REMEDY}."
        )
    tokenizer("a", verbose=False)
    with torch.no_grad():
        encoder(input_ids=torch.zeros(1, 2, dtype=torch.long, device=encoder.device))


def _dtype_of(dtype: Dtypes, name: str) -> torch.dtype | None:
    if isinstance(dtype, Mapping):
        return dtype.get(name, dtype.get("default", torch.float32))
    return dtype


def _require_below(folder: Path, root: Path) -> None:
    if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(
            f"'{folder}' is a link to a place outside its folder; do not trust it, or copy the files there."
        )


def _check_setting(source: str, name: str, value: Any, default: Any) -> None:
    """Refuses a setting of another type than its default's, and numbers that overflow."""
    if value is None or value == default:
        return
    if isinstance(default, bool) or (isinstance(default, str) and default):
        wanted: tuple[type, ...] = (type(default),)
    elif isinstance(default, (int, float)):
        wanted = (int, float, list)
    else:
        wanted = (str, bool, int, float, list, dict)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise CheckpointError(f"{source} sets {name} to {value!r}, which is no value for it; {REMEDY}.")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            size = abs(number)
            if not math.isfinite(number) or size > _LARGEST or 0 < size < _SMALLEST:
                raise CheckpointError(
                    f"{source} sets {name} to {number}; give a number between {_SMALLEST:g} and {_LARGEST:g}."
                )
