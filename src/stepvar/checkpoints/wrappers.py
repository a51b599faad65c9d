"""Wrappers that training puts around a state dict: nested dictionaries, prefixes of DDP, FSDP and compile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

Routes = Sequence[Sequence[str]]

_NESTS = (
    "ema",
    "ema_state_dict",
    "model_ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "params",
)
"""Keys under which training scripts keep the weights, averaged ones first: those are what draws."""

_INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""Wrappers that may stand before any part of a name."""

_OUTER = ("module.", "model.", "net.", "ema_model.")
"""Prefixes that are stripped where every name has them."""

_DEPTH = 3


def find_state(content: Any, routes: Routes) -> tuple[Any, tuple[str, ...]]:
    """The state dict in what a file holds, and the keys that lead to it.

    The first of `routes` that exists counts, then the keys that training scripts commonly use; what already
    maps names to tensors is taken as it is.
    """
    for route in routes:
        found: Any = content
        for key in route:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return found, tuple(route)
    taken: tuple[str, ...] = ()
    while len(taken) < _DEPTH and isinstance(content, Mapping) and not any(map(_is_tensor, content.values())):
        nest = next((key for key in _NESTS if _holds_tensors(content.get(key))), None)
        if nest is None:
            break
        content, taken = content[nest], (*taken, nest)
    return content, taken


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _holds_tensors(value: Any, depth: int = _DEPTH) -> bool:
    if not isinstance(value, Mapping) or not depth:
        return False
    nested = (value.get(key) for key in _NESTS)
    return any(map(_is_tensor, value.values())) or any(_holds_tensors(entry, depth - 1) for entry in nested)


def strip_wrappers(names: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names as the model itself has them.

    Args:
        names: Names of a state dict.

    Returns:
        Given name -> its name without the prefixes of wrappers, and the prefixes that were stripped. Nothing
        is stripped where two names would become one.
    """
    stripped = {name: name for name in names}
    prefixes: list[str] = []
    for prefix, change in _strippings(names):
        changed = {name: change(current) for name, current in stripped.items()}
        if changed != stripped and len(set(changed.values())) == len(changed):
            stripped = changed
            prefixes.append(prefix)
    return stripped, tuple(prefixes)


def _strippings(names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Prefix and function of a name, for every wrapper there may be."""
    for prefix in _INNER:
        if any(prefix in name for name in names):
            yield prefix, lambda name, prefix=prefix: name.replace(prefix, "")
    inner = [_without(name, _INNER) for name in names]
    # A wrapped wrapper: DDP around a compiled model, in a trainer's own module.
    for _ in range(_DEPTH):
        shared = (entry for entry in _OUTER if all(name.startswith(entry) for name in inner))
        outer = next(shared, None) if inner else None
        if outer is None:
            return
        yield outer, lambda name, outer=outer: name.removeprefix(outer)
        inner = [name.removeprefix(outer) for name in inner]


def _without(name: str, parts: Sequence[str]) -> str:
    for part in parts:
        name = name.replace(part, "")
    return name
