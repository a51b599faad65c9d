"""Fields of a configuration compared with their annotations: numbers are numbers, and finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_LARGEST = 2**63 - 1
"""What a generator takes as its seed, and more than any count."""

_NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "a name",
    bool: "True or False",
    NoneType: "None",
}


def require_fields(config: Any, title: str | None = None) -> None:
    """Checks the fields of a dataclass whose annotations are numbers, names, or collections of them.

    Args:
        title: What messages call it; by default its class.

    Raises:
        ValueError: Naming the first field that is something else, NaN or infinite.
    """
    try:
        hints = get_type_hints(type(config))
    except NameError:  # a class of one's own, whose annotations are imported for type checkers alone
        return
    for entry in fields(config):
        value, hint = getattr(config, entry.name), hints[entry.name]
        if not _fits(value, hint):
            title = title or type(config).__name__
            raise ValueError(f"{entry.name} of {title} is {value!r}; give {_named(hint)}.")


def require_arguments(function: Any, given: Mapping[str, Any]) -> None:
    """Checks arguments against the annotations of a function, as `require_fields` does; None is not given.

    Raises:
        ValueError: Naming the first argument that is something else, NaN or infinite.
    """
    try:
        hints = get_type_hints(function)
    except NameError:  # of a class of one's own, whose annotations are imported for type checkers alone
        return
    for name, value in given.items():
        if value is not None and name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name} is {value!r}; give {_named(hints[name])}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if hint is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return whole and abs(int(value)) <= _LARGEST
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if origin is tuple and parts[1:] == (...,):
        entries = isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes))
        return entries and all(_fits(entry, parts[0]) for entry in value)
    if origin is Mapping:
        pairs = value.items() if isinstance(value, Mapping) else ((None, None),)
        return all(_fits(key, parts[0]) and _fits(entry, parts[1]) for key, entry in pairs)
    # Rules are functions, classes or names, and are checked where they are looked up.
    checked = hint in _NAMES or getattr(hint, "_is_runtime_protocol", False)
    return not checked or isinstance(value, hint)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _named(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_named(part) for part in parts)
    if origin is tuple:
        return f"a tuple, each entry {_named(parts[0])}"
    if origin is Mapping:
        return f"a mapping of {_named(parts[0])} to {_named(parts[1])}"
    return _NAMES.get(hint) or str(getattr(hint, "__name__", hint))
