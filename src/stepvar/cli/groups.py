"""Groups of options that several commands share, each declared once as a dataclass.

A command takes such a dataclass as a parameter; `with_option_groups` shows its fields to typer as options of
the command, and hands the command the filled dataclass. In a group of `CallOptions` a field is the whole
declaration of an option: its name is the argument of a pipeline's call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from typer.models import OptionInfo


@dataclass(frozen=True)
class Parsed:
    """Annotation of an option whose text is read by a function of ours, with our own messages.

    Attributes:
        parse: Takes the text and the option's name, for messages.
    """

    parse: Callable[[str, str], Any]


class CallOptions:
    """Base of groups whose fields are arguments of a pipeline's call; None stands for an option not given."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a pipeline's call, and for its summary.

        Raises:
            InputError: When a text is not understood.
        """
        given: dict[str, Any] = {}
        for name, (option, parse) in _declarations(type(self)).items():
            value = getattr(self, name)
            if value is not None:
                given[name] = value if parse is None else parse(value, option)
        return given

    @classmethod
    def option_names(cls) -> dict[str, str]:
        """What each argument is called on the command line, such as `negative_prompt`: `--negative`."""
        return {name: option for name, (option, _) in _declarations(cls).items()}


def _declarations(group: type) -> dict[str, tuple[str, Callable[[str, str], Any] | None]]:
    """The option's name, and what reads its text, of every field of a group."""
    found = {}
    for name, hint in get_type_hints(group, include_extras=True).items():
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        declared = [extra for extra in extras if isinstance(extra, OptionInfo)]
        # In an annotation typer.Option's first argument is the option's name, not a default.
        names = [name for extra in declared for name in (extra.default, *(extra.param_decls or ()))]
        flags = [flag.partition("/")[0] for flag in names if isinstance(flag, str)]
        parsers = [extra.parse for extra in extras if isinstance(extra, Parsed)]
        found[name] = (
            flags[0] if flags else f"--{name.replace('_', '-')}",
            parsers[0] if parsers else None,
        )
    return found


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces every dataclass parameter of a command by the dataclass's fields, as keyword options."""
    hints = {name: _declared(hint) for name, hint in get_type_hints(command, include_extras=True).items()}
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _options(hints[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    # typer reads the signature, and in older versions the annotations too.
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapped.__wrapped__  # type: ignore[attr-defined]  # inspect would look at the command itself
    return wrapped


def _declared(hint: Any) -> Any:
    """An annotation as it was written: Python 3.10 makes those of parameters with default None optional."""
    inner = [entry for entry in get_args(hint) if get_origin(entry) is Annotated]
    return inner[0] if get_origin(hint) is Union and inner else hint


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [
        inspect.Parameter(
            field.name,
            kind,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
