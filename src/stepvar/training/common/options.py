"""Commands whose options are the fields of a settings dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar, get_type_hints

from stepvar.training.common.run import Settings

Result = TypeVar("Result")


def settings_command(kind: type[Settings], run: Callable[[Settings], Result]) -> Callable[..., Result]:
    """A function with one keyword argument for each field of `kind`, as Typer reads its options.

    Args:
        kind: A dataclass with a default for every field; its docstring becomes the help text.
        run: Called with the settings.
    """

    def command(**values: object) -> Result:
        return run(kind(**values))

    hints = get_type_hints(kind)
    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(kind)
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    # \b keeps Click from joining the lines.
    command.__doc__ = "\b\n" + (inspect.getdoc(kind) or "")
    return command
