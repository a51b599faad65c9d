"""Our pipelines under their names in diffusers, so that its own openers find them.

`DiffusionPipeline.from_pretrained` looks a pipeline's class up as an attribute of `diffusers`, and
`AutoPipelineForText2Image` in a table. Both get an entry for every pipeline of ours whose name is free, when
they are imported and not before: diffusers takes seconds. Nothing that diffusers has is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from stepvar.models import MODELS

if TYPE_CHECKING:
    # At run time it would import a dozen modules for two base classes that nothing needs.
    from importlib.abc import Loader


def _add_attributes() -> None:
    import diffusers

    # It is our own pipelines that are importing diffusers: each adds itself when it is complete.
    if "stepvar.checkpoints.checked_pipeline" in sys.modules:
        return
    for spec in MODELS:
        if not hasattr(diffusers, spec.pipeline_name):
            setattr(diffusers, spec.pipeline_name, spec.pipeline_class)


def _add_to_table() -> None:
    from diffusers.pipelines import auto_pipeline

    table: dict[str, Any] = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    for spec in MODELS:
        if spec.task == "text-to-image":
            table.setdefault(f"stepvar-{spec.key}", spec.pipeline_class)


_ACTIONS: dict[str, Callable[[], None]] = {
    "diffusers.pipelines.pipeline_utils": _add_attributes,
    "diffusers.pipelines.auto_pipeline": _add_to_table,
}
"""Module of diffusers -> what is added once it was imported."""


class _ActingLoader:
    """Imports a module as its own loader does, then acts."""

    def __init__(self, loader: Loader, action: Callable[[], None]) -> None:
        self._loader, self._action = loader, action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._action()


class _Finder:
    """Finds the modules of `_ACTIONS` where they are, and lets something follow their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = _ACTIONS.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if action is not None else None
        if action is None or spec is None or spec.loader is None:
            return None
        spec.loader = cast("Loader", _ActingLoader(spec.loader, action))
        return spec


def register() -> None:
    """Adds the pipelines of all models to diffusers now, or as soon as it is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for module, action in _ACTIONS.items():
        if module in sys.modules:
            action()
