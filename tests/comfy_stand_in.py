"""The part of ComfyUI's V3 API that our nodes use, for tests without ComfyUI.

Strict where ComfyUI is: ids are unique, a default lies within its bounds or among its options, and `execute`
takes exactly the inputs that the schema declares.
"""

from __future__ import annotations

import inspect
from enum import Enum
from types import ModuleType
from typing import Any


class _Input:
    def __init__(self, id: str, optional: bool = False, **options: Any) -> None:
        self.id, self.optional, self.options = id, optional, options
        known = {"tooltip", "default", "display_name"} | self.more
        assert set(options) <= known, f"{id}: unknown {set(options) - known}"
        default = options.get("default")
        if "min" in options:
            assert options["min"] <= default <= options["max"], id
        if "options" in options:
            assert default in options["options"], id

    more: frozenset[str] = frozenset()


class _Output:
    def __init__(self, display_name: str = "") -> None:
        self.display_name = display_name


def _socket(io_type: str, more: str = "") -> Any:
    class Socket:
        Input = type("Input", (_Input,), {"more": frozenset(more.split()), "io_type": io_type})
        Output = type("Output", (_Output,), {"io_type": io_type})

    return Socket


class _Schema:
    def __init__(
        self, node_id: str, display_name: str, category: str, description: str, inputs: Any, outputs: Any
    ) -> None:
        self.node_id, self.display_name, self.category = node_id, display_name, category
        self.inputs, self.outputs = inputs, outputs
        ids = [entry.id for entry in inputs]
        assert len(set(ids)) == len(ids), f"{node_id}: ids come twice"


class _ComfyNode:
    """Base of nodes; a subclass has define_schema and execute."""


class _NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.result = args


class ProgressBar:
    """Keeps what it was moved to."""

    seen: list[int] = []  # noqa: RUF012

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int) -> None:
        assert 0 <= value <= self.total
        self.seen.append(value)


class Interrupted(Exception):
    """What ComfyUI raises when the user has cancelled."""


class Cancel:
    """Whether the user has cancelled."""

    pressed = False

    @classmethod
    def check(cls) -> None:
        if cls.pressed:
            raise Interrupted


def modules() -> dict[str, ModuleType]:
    """ComfyUI's modules, as they go into `sys.modules`."""
    numbers = "min max step display_mode"
    io = ModuleType("comfy_api.latest.io")
    contents = {
        "Int": _socket("INT", f"{numbers} control_after_generate"),
        "Float": _socket("FLOAT", numbers),
        "String": _socket("STRING", "multiline dynamic_prompts"),
        "Combo": _socket("COMBO", "options"),
        "Image": _socket("IMAGE"),
        "Mask": _socket("MASK"),
        "Custom": _socket,
        "NumberDisplay": Enum("NumberDisplay", ["number", "slider"]),
        "Schema": _Schema,
        "ComfyNode": _ComfyNode,
        "NodeOutput": _NodeOutput,
        "Input": _Input,
    }
    vars(io).update(contents)
    latest, utils, management = (
        ModuleType(name) for name in ("comfy_api.latest", "comfy.utils", "comfy.model_management")
    )
    latest.io, latest.ComfyExtension = io, type("ComfyExtension", (), {})  # type: ignore[attr-defined]
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = Cancel.check  # type: ignore[attr-defined]
    made = [ModuleType("comfy_api"), ModuleType("comfy"), latest, utils, management]
    return {module.__name__: module for module in made}


def check_signature(node: Any) -> None:
    """`execute` takes exactly what the schema declares, and may be called without what is optional."""
    inputs = {entry.id: entry for entry in node.define_schema().inputs}
    parameters = inspect.signature(node.execute).parameters
    if any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in parameters.values()):
        assert set(parameters) - set(inputs) == {"sliders"}
        return
    assert set(parameters) == set(inputs), node.__name__
    for name, entry in inputs.items():
        if entry.optional:
            assert parameters[name].default is not inspect.Parameter.empty
