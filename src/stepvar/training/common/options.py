"""Commands whose options are the fields of a settings dataclass."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, get_type_hints

import typer

from stepvar.training.common.accelerator import check_device, check_tracker
from stepvar.training.common.run import Settings

_ATTRIBUTES = re.compile(r"^    (\w+(?:, \w+)*): (.+(?:\n {8}.+)*)", re.MULTILINE)
"""Entries of a docstring's attribute list: names, and a text that may continue in indented lines."""


def checked_device(name: str) -> str:
    """A device's name as an option; reports a wrong one as Typer reports wrong values."""
    return _checked(check_device, name)


def checked_tracker(name: str) -> str:
    """A tracker's name as an option."""
    return _checked(check_tracker, name)


def _checked(check: Callable[[str], None], value: str) -> str:
    try:
        check(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return value


_CALLBACKS = {"device": checked_device, "log_with": checked_tracker}


def settings_command(
    kind: type[Settings], run: Callable[[Settings], None], summary: str
) -> Callable[..., None]:
    """A function with one keyword argument for each field of `kind`, as Typer reads its options.

    Args:
        kind: A dataclass with a default for every field; its docstring describes the options.
        run: Called with the settings.
        summary: One sentence for the help text.
    """

    def command(**values: object) -> None:
        run(kind(**values))

    hints, texts = get_type_hints(kind), attribute_texts(kind)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[
                hints[field.name],
                typer.Option(help=texts.get(field.name), callback=_CALLBACKS.get(field.name)),
            ],
        )
        for field in fields(kind)
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by `inspect`
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = summary
    return command


def attribute_texts(kind: type) -> dict[str, str]:
    """Descriptions of attributes by name, from the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        for names, text in _ATTRIBUTES.findall(inspect.cleandoc(each.__doc__ or "")):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts
