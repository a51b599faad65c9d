"""Components of a pipeline: the table of classes that may be built from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

Reference = str
"""A class or function by "module:name", imported on first use: a table of them needs no torch."""


def load_reference(reference: Reference) -> Any:
    """The class or function that a reference names."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class ComponentSpec:
    """One component of a pipeline: a folder of its own when it is saved.

    Nothing but the classes named here is built from a folder, whatever its index says.

    Attributes:
        classes: What it may be an instance of; the first one is what conversion writes.
        loader: Function (folder, dtype) that loads it strictly; None where our own classes and tokenizers are
            loaded the same way for all models.
        former_names: Names of its class in folders that earlier versions saved.
        optional: Whether a pipeline works without it.
        published: Name of the one that the published weights were trained with.
    """

    classes: tuple[Reference, ...]
    loader: Reference | None = None
    former_names: tuple[str, ...] = ()
    optional: bool = False
    published: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names that a saved folder may have for it."""
        return tuple(entry.partition(":")[2] for entry in self.classes) + self.former_names

    @property
    def is_ours(self) -> bool:
        """Whether its class is defined in this package."""
        return self.classes[0].startswith("stepvar.")

    def load_class(self) -> Any:
        """The class that conversion writes; imports its module."""
        return load_reference(self.classes[0])
