"""Base of pipelines: loaded from folders of unknown origin, and saved so that diffusers finds them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from stepvar.checkpoints.components import ComponentSpec
from stepvar.checkpoints.devices import present_accelerators
from stepvar.checkpoints.errors import CheckpointError, first_line
from stepvar.checkpoints.hub import HubOptions, PathLike, local_folder
from stepvar.checkpoints.lock import LOADING
from stepvar.checkpoints.model_card import CardFacts, write_card
from stepvar.checkpoints.pipeline_folder import (
    INDEX,
    REMEDY,
    Dtypes,
    PipelineFolder,
    check_saved,
    check_text_side,
)
from stepvar.checkpoints.publishing import Upload, require_name, take_published_card, upload
from stepvar.checkpoints.transformers_models import check_tokenizer_folder

if TYPE_CHECKING:
    from typing_extensions import Self

DIFFUSERS_FILE = "pipeline.py"

_FOR_DIFFUSERS = '''"""The pipeline of this folder, for diffusers; stepvar must be installed.

DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
"""

from stepvar import {pipeline}

__all__ = ["{pipeline}"]
'''

_HUB_OPTIONS = tuple(HubOptions.__dataclass_fields__)

_BY_DIFFUSERS = ("device_map", "quantization_config", "max_memory", "offload_folder", "offload_state_dict")
"""Arguments that only diffusers' own loading serves; it is run after the same checks."""

_PUSH_OPTIONS = ("commit_message", "private", "token", "create_pr")

_WITHOUT_MEANING = frozenset(
    {"low_cpu_mem_usage", "use_safetensors", "trust_remote_code", "disable_mmap", "proxies", "mirror"}
)
"""Arguments of diffusers that are accepted and need nothing: weights are always safetensors first, built
without memory, copied, and no code of a folder is ever run."""


class PipelineTable(Protocol):
    """What the loading of a pipeline knows of its model."""

    @property
    def name(self) -> str: ...
    @property
    def repository(self) -> str: ...
    @property
    def components(self) -> Mapping[str, ComponentSpec]: ...
    @property
    def license(self) -> str | None: ...
    @property
    def task(self) -> str: ...


class CheckedPipeline(DiffusionPipeline):
    """A pipeline whose components come from a table.

    Attributes:
        spec: Its model: the components it may have, and what its card says.
    """

    spec: ClassVar[PipelineTable]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes a pipeline known to diffusers, which looks classes up by name in its own module."""
        super().__init_subclass__(**kwargs)
        if not hasattr(diffusers, cls.__name__):
            setattr(diffusers, cls.__name__, cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: PathLike, **kwargs: Any) -> Self:
        """Loads a pipeline from a folder or a repository of the hub, after checking every part of it.

        Nothing in the folder is executed, no file outside it is read, and it costs no more memory than its
        files; see docs/security.md.

        Args:
            pretrained_model_name_or_path: A folder that `stepvar convert` or `save_pretrained` wrote, or the
                name of a repository with one.
            kwargs: `dtype` (or `torch_dtype`): number format, or one by component with "default" for the
                others; float32 by default, "auto" keeps the files'. `revision`, `variant`, `cache_dir`,
                `local_files_only`, `token`, `force_download` as in diffusers. Components and settings of the
                constructor, which then do not come from the folder. `quantization_config` and `device_map` as
                in diffusers.

        Returns:
            The pipeline, on the CPU.

        Raises:
            CheckpointError: When something is missing, damaged, executable, not finite, or of another model.
            ValueError: When an argument is unknown.
        """
        asked = {name: kwargs.pop(name, None) for name in _HUB_OPTIONS}
        hub = HubOptions(**{name: value for name, value in asked.items() if value is not None})
        dtype = _dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        _require_parts(dtype, cls.spec.components)
        path = local_folder(pretrained_model_name_or_path, hub)
        opened = PipelineFolder.open(path, hub.variant)
        _require_pipeline(cls, opened)
        _check_placing(kwargs)
        special = {name: kwargs.pop(name) for name in _BY_DIFFUSERS if kwargs.get(name) is not None}
        for name in kwargs.keys() & {*_WITHOUT_MEANING, *_BY_DIFFUSERS}:
            del kwargs[name]
        defaults = _constructor(cls)
        opened.require_known({*cls.spec.components, *defaults})
        given = {name: kwargs.pop(name) for name in cls.spec.components if name in kwargs}
        for name, part in given.items():
            if part is None and not cls.spec.components[name].optional:
                raise ValueError(f"{cls.__name__} cannot be without its {name}: leave {name}=None out.")
        settings = {name: kwargs.pop(name) for name in defaults if name in kwargs}
        if kwargs:
            raise ValueError(
                f"{cls.__name__}.from_pretrained has no argument {', '.join(sorted(kwargs))}: leave it out."
            )
        with LOADING:
            settings = cls.saved_settings(opened.index, opened.settings(defaults)) | settings
            pipeline = _load(cls, opened, given, settings, dtype, special)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @classmethod
    def saved_settings(cls, index: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of a saved folder as this version means them; a model's own may have changed.

        Args:
            index: The folder's whole index.
            settings: Arguments of the constructor in it.
        """
        return settings

    def check_loaded(self) -> None:
        """Checks that what was loaded can run; a model's own checks come here."""

    def save_pretrained(
        self, save_directory: PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Saves the pipeline as diffusers does, with a model card, and a file by which diffusers finds it.

        `DiffusionPipeline.from_pretrained(folder)` loads the folder where stepvar was imported; elsewhere it
        needs `custom_pipeline="pipeline", trust_remote_code=True`, which runs the two lines of pipeline.py.

        Args:
            save_directory: The folder.
            args, kwargs: `safe_serialization`, `variant`, `max_shard_size` as in diffusers.
            push_to_hub: Sends the finished folder to `repo_id`, by default a repository of the folder's name;
                with `private`, `token`, `commit_message`, `create_pr` as in diffusers.

        Raises:
            ValueError: When there can be no such repository; nothing has been saved then.
        """
        folder = Path(save_directory)
        repository = kwargs.pop("repo_id", folder.name) if push_to_hub else ""
        options = {name: kwargs.pop(name) for name in _PUSH_OPTIONS if push_to_hub and name in kwargs}
        if push_to_hub:
            require_name(repository)
        super().save_pretrained(str(folder), *args, **kwargs)
        finish_folder(folder, type(self).__name__, self.spec, self.origin)
        if push_to_hub:
            upload(folder, repository, **options)

    def push_to_hub(  # type: ignore[override]  # diffusers returns the address alone
        self,
        repo_id: str,
        *,
        dry_run: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> str | Upload:
        """Publishes the pipeline on the hub, with its model card; a card that is there already stays.

        Args:
            repo_id: owner/name.
            dry_run: Sends nothing, asks the hub nothing, and returns what would be sent.
            safe_serialization, variant, token: As in diffusers.
            options: `commit_message`, `private`, `create_pr`, `subfolder` as in diffusers.

        Returns:
            Address of the commit; for a dry run names and sizes of the files, and the model card.

        Raises:
            ValueError: When there can be no such repository.
        """
        require_name(repo_id)
        with TemporaryDirectory() as name:
            folder = Path(name)
            if not dry_run:
                take_published_card(folder, repo_id, token)
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            if dry_run:
                return Upload.of(folder, repo_id)
            return upload(folder, repo_id, token=token, **options)

    @classmethod
    def from_single_file(cls, *args: Any, **kwargs: Any) -> Self:
        """Raises ValueError: `stepvar.load` opens official files, whichever model they hold."""
        raise ValueError(
            f"{cls.__name__} has no from_single_file: stepvar.load(file) opens an official file, with vae= "
            "and text_encoder= where they do not lie beside it."
        )

    @property
    def origin(self) -> str:
        """Where it was loaded from, or what it is."""
        return str(self.config.get("_name_or_path") or type(self).__name__)


def finish_folder(folder: Path, pipeline: str, spec: PipelineTable, origin: str) -> None:
    """Completes a folder that a pipeline was saved to: index, card, and a file for diffusers."""
    file = folder / INDEX
    index = json.loads(file.read_text("utf-8"))
    for name, component in spec.components.items():
        entry = index.get(name)
        # diffusers looks up a component, and its base classes, on the library that is named here.
        if component.is_ours and isinstance(entry, list):
            index[name] = ["stepvar", entry[1]]
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / DIFFUSERS_FILE).write_text(_FOR_DIFFUSERS.format(pipeline=pipeline), "utf-8")
    write_card(folder, CardFacts(spec.name, spec.repository, spec.license, spec.task, pipeline, origin))


def _dtype(dtype: Any, torch_dtype: Any) -> Dtypes:
    chosen = torch_dtype if dtype is None else dtype
    if chosen is None:
        return torch.float32
    if isinstance(chosen, str):
        if chosen == "auto":
            return None
        named = getattr(torch, chosen, None)
        if isinstance(named, torch.dtype):
            return named
    if isinstance(chosen, torch.dtype):
        return chosen
    if isinstance(chosen, Mapping):
        formats = {name: _dtype(value, None) for name, value in chosen.items() if value not in (None, "auto")}
        if len(formats) == len(chosen):
            return {name: value for name, value in formats.items() if isinstance(value, torch.dtype)}
    raise ValueError(
        f"dtype is {chosen!r}; pass a torch.dtype, a dictionary of them by component, or 'auto'."
    )


def _require_parts(dtype: Dtypes, components: Mapping[str, ComponentSpec]) -> None:
    """Refuses number formats of parts that are not there."""
    unknown = (
        [] if not isinstance(dtype, Mapping) else [x for x in dtype if x not in (*components, "default")]
    )
    if unknown:
        raise ValueError(f"dtype names {unknown[0]!r}; known are {', '.join(components)} and default.")


def _check_placing(kwargs: Mapping[str, Any]) -> None:
    """Refuses device maps that diffusers has not, or that would place nothing here."""
    place = kwargs.get("device_map")
    if place is None:
        alone = [name for name in ("max_memory", "offload_folder") if kwargs.get(name) is not None]
        if alone:
            raise ValueError(f"{alone[0]} says how device_map='balanced' shares: pass both, or none.")
        return
    devices = [*present_accelerators(), "cpu"]
    if place == "balanced" and devices == ["cpu"]:
        raise ValueError(
            "device_map='balanced' shares the parts among GPUs, and there is none here: leave it out."
        )
    if place not in ("balanced", *devices):
        known = " and ".join(map(repr, devices))
        raise ValueError(
            f"device_map is {place!r}; this machine knows {known}, and 'balanced' where there are GPUs."
        )


def _require_pipeline(kind: type[CheckedPipeline], opened: PipelineFolder) -> None:
    """Refuses a folder of another pipeline than a class, or one it inherits from."""
    name = opened.pipeline_name
    if name not in {base.__name__ for base in kind.__mro__ if issubclass(base, CheckedPipeline)}:
        raise CheckpointError(
            f"'{opened.path}' holds a {name!r}, not {kind.__name__}; load it with stepvar.load."
        )


def _constructor(kind: type[CheckedPipeline]) -> dict[str, Any]:
    """Settings of a pipeline's constructor, with their defaults."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {
        entry.name: entry.default
        for entry in parameters
        if entry.name not in kind.spec.components and entry.default is not inspect.Parameter.empty
    }


def _load(
    kind: type[CheckedPipeline],
    opened: PipelineFolder,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    dtype: Dtypes,
    special: Mapping[str, Any],
) -> Any:
    components = kind.spec.components
    checked = opened.check(components, given)
    parts = dict(given)
    for name, class_name in checked.items():
        if class_name is None:
            parts[name] = None
        elif special:
            _check_component(opened, name, components[name])
        else:
            parts[name] = opened.load(name, components[name], class_name, dtype)
    try:
        if special:
            pipeline = super(CheckedPipeline, kind).from_pretrained(
                opened.path,
                torch_dtype=dtype,
                variant=opened.variant,
                local_files_only=True,
                disable_mmap=True,
                **special,
                **parts,
            )
        else:
            pipeline = kind(**parts, **settings)
        _check_texts(pipeline, components)
        pipeline.check_loaded()
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise almost any type for a damaged folder
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise
        if special:
            raise ValueError(
                f"'{opened.path}' cannot be loaded with {' and '.join(special)} "
                f"({type(error).__name__}: {first_line(error)}); leave it out, or give what can be used here."
            ) from error
        raise CheckpointError(
            f"'{opened.path}' cannot be loaded ({type(error).__name__}: {first_line(error)}); {REMEDY}."
        ) from error
    return pipeline


def _check_component(opened: PipelineFolder, name: str, spec: ComponentSpec) -> None:
    """What loading a component checks, where diffusers loads it."""
    folder = opened.path / name
    if spec.is_ours:
        check_saved(spec.load_class(), folder, opened.variant)
    elif spec.loader is not None:
        opened.load(name, spec, "", None)
    else:
        check_tokenizer_folder(folder, spec.class_names, name)


def _check_texts(pipeline: CheckedPipeline, components: Mapping[str, ComponentSpec]) -> None:
    for name in components:
        if not name.startswith("text_encoder"):
            continue
        encoder = getattr(pipeline, name)
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"), None)
        if isinstance(encoder, nn.Module) and tokenizer is not None:
            check_text_side(encoder, tokenizer)
