"""Registries of rules: scores and recoveries by name, from this package, installed ones and one's own."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

Rule = TypeVar("Rule")
Decorated = TypeVar("Decorated")


class Registry(Mapping[str, Rule], Generic[Rule]):
    """Rules of one kind by name.

    Iterating gives the built-in rules, then those that were registered since, then those that installed
    packages offer through an entry point; a package is imported when its rule is first used.

    Args:
        kind: What a rule is called in messages.
        group: Entry-point group in which packages offer rules.
        check: Raises ValueError when an object is no rule of this kind.
    """

    def __init__(self, kind: str, group: str, check: Callable[[Any], None]) -> None:
        self.kind = kind
        self.group = group
        self.check = check
        self._rules: dict[str, Rule] = {}
        self._offered: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Decorator that adds a rule under a name and leaves it as it is."""

        def decorate(rule: Decorated) -> Decorated:
            self.add(rule, name)
            return rule

        return decorate

    def add(self, rule: Any, name: str | None = None) -> str:
        """Adds a rule, by default under its own name; returns the name.

        Running a definition again, as in a notebook, replaces the rule.

        Raises:
            ValueError: When it is no rule of this kind, or another one has that name.
        """
        self.check(rule)
        name = self.name_of(rule) if name is None else name
        present = self._rules.get(name)
        if present is not None and _origin(present) != _origin(rule):
            raise ValueError(
                f"There is already a {self.kind} {name!r}, {'.'.join(_origin(present))}: choose another name."
            )
        self._rules[name] = rule
        return name

    def name_or_rule(self, rule: Any) -> Any:
        """The name of a rule that is registered, or equals one that is; otherwise the rule itself.

        Raises:
            ValueError: When there is no rule of that name, or it is no rule of this kind.
        """
        if isinstance(rule, str):
            self.find(rule)
            return rule
        self.check(rule)
        for name, known in self._rules.items():
            if rule is known or (isinstance(known, type) and type(rule) is known and rule == _default(known)):
                return name
        return rule

    def name_of(self, rule: Any) -> str:
        """The name a rule was registered under, or its own: of a function, a class or an object's class."""
        if isinstance(rule, str):
            return rule
        for name, known in self._rules.items():
            if known is rule or (isinstance(known, type) and type(rule) is known):
                return name
        if isinstance(rule, partial):
            options = ", ".join(f"{key}={value!r}" for key, value in rule.keywords.items())
            return f"{self.name_of(rule.func)}({options})"
        return str(getattr(rule, "__name__", type(rule).__name__))

    def find(self, name: str) -> Rule:
        """The rule of a name.

        Raises:
            ValueError: When there is none, or its package cannot be imported.
        """
        if name not in self:
            raise ValueError(f"Unknown {self.kind} {name!r}; known are {', '.join(self)}.")
        return self[name]

    def __getitem__(self, name: str) -> Rule:
        if name not in self._rules:
            self.add(_load(self.kind, self._entry_points()[name]), name)
        return self._rules[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rules or name in self._entry_points()

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._rules, *self._entry_points()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _entry_points(self) -> Mapping[str, EntryPoint]:
        """What installed packages offer; looked up once, since it takes a while."""
        if self._offered is None:
            self._offered = {}
            for point in entry_points(group=self.group):
                if point.name in self._rules or point.name in self._offered:
                    warnings.warn(
                        f"Two {self.kind}s are called {point.name!r}: the one at {point.value} is left out.",
                        stacklevel=2,
                    )
                else:
                    self._offered[point.name] = point
        return self._offered


def load_rule(reference: str, folder: Path | None = None) -> Any:
    """The object that "module:name" names. Importing a module runs it: pass only what a person wrote.

    Args:
        reference: Such as "my_rules:contrast".
        folder: Where modules are searched for after the places where `import` finds them.

    Raises:
        ValueError: When there is no such module, it cannot be imported, or it has nothing of that name.
    """
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise ValueError(f"{reference!r} names no rule: write module:function, such as my_rules:contrast.")
    searched = [] if folder is None else [str(folder)]
    sys.path.extend(searched)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"Module {module_name!r} cannot be imported: {error}.") from error
        raise ValueError(
            f"There is no module {module_name!r}: run in the folder that holds it, or install it."
        ) from error
    except Exception as error:  # a module that is being written can raise anything
        raise ValueError(
            f"Module {module_name!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    finally:
        for entry in searched:
            sys.path.remove(entry)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"Module {module_name!r} has no {name!r}.")
        found = getattr(found, part)
    return found


def _load(kind: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # another package's code can raise anything
        package = point.dist.name if point.dist else point.module
        raise ValueError(
            f"The {kind} {point.name!r} of {package} cannot be loaded: {type(error).__name__}: {error}."
        ) from error


def _default(kind: type) -> Any:
    """An object of a class with its default settings; None where it has none."""
    try:
        return kind()
    except (TypeError, ValueError):
        return None


def _origin(rule: Any) -> tuple[str, str]:
    """Module and name of a rule's definition."""
    rule = rule.func if isinstance(rule, partial) else rule
    defined = rule if hasattr(rule, "__qualname__") else type(rule)
    return defined.__module__, defined.__qualname__
