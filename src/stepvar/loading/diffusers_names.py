"""Our pipelines under their names in diffusers, so that its own openers find them.

`DiffusionPipeline.from_pretrained` looks a pipeline's class up as an attribute of `diffusers`, which finds
ours when they are asked for. `AutoPipelineForText2Image` and the like look into tables, which get them when
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

    ours = {spec.pipeline_name: spec for spec in MODELS}
    theirs = set(dir(diffusers))
    names = vars(diffusers)
    other = names.get("__getattr__")
    if getattr(other, "__module__", None) == __name__:
        return

    def find(name: str) -> Any:
        """An attribute that the module has not: one of our pipelines, imported now."""
        if name in ours and name not in theirs:
            return ours[name].pipeline_class
        if other is not None:
            return other(name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    names["__getattr__"] = find


_TABLES = {
    "text-to-image": ("AUTO_TEXT2IMAGE_PIPELINES_MAPPING",),
    "image-to-image": ("AUTO_IMAGE2IMAGE_PIPELINES_MAPPING",),
    "text-to-video": (
        "AUTO_TEXT2VIDEO_PIPELINES_MAPPING",
        "AUTO_IMAGE2VIDEO_PIPELINES_MAPPING",
        "AUTO_VIDEO2VIDEO_PIPELINES_MAPPING",
    ),
}
"""Task of a model -> tables of diffusers' automatic pipelines; older versions have none of videos."""


def _add_to_tables() -> None:
    from diffusers.pipelines import auto_pipeline

    for spec in MODELS:
        for name in _TABLES.get(spec.task, ()):
            table: dict[str, Any] | None = getattr(auto_pipeline, name, None)
            if table is not None:
                table.setdefault(f"stepvar-{spec.key}", spec.pipeline_class)


_ACTIONS: dict[str, Callable[[], None]] = {
    "diffusers": _add_attributes,
    "diffusers.pipelines.auto_pipeline": _add_to_tables,
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
