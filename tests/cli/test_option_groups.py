"""Groups of options: one field declares an option, its argument and how its text is read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Optional

import pytest
import typer

from stepvar.cli.errors import InputError
from stepvar.cli.groups import CallOptions, Parsed, _declared, with_option_groups
from stepvar.cli.options import OPTION_NAMES, SamplingOptions, SizeOptions, VideoOptions
from stepvar.cli.values import parse_numbers
from stepvar.models.infinity.pipeline import InfinityPipeline
from stepvar.models.infinitystar.pipeline import InfinityStarPipeline


@dataclass(frozen=True)
class Options(CallOptions):
    plain_name: Annotated[int | None, typer.Option(help="One line.")] = None
    renamed: Annotated[str | None, typer.Option("--short", "-s"), Parsed(parse_numbers)] = None
    switch: Annotated[bool | None, typer.Option("--on/--off")] = None


def test_a_field_is_the_whole_declaration():
    assert Options.option_names() == {"plain_name": "--plain-name", "renamed": "--short", "switch": "--on"}
    assert Options().arguments() == {}
    assert Options(plain_name=0, renamed="1,2", switch=False).arguments() == {
        "plain_name": 0,
        "renamed": [1.0, 2.0],
        "switch": False,
    }
    with pytest.raises(InputError, match="--short 'x' is not understood"):
        Options(renamed="x").arguments()


def test_a_command_gets_the_filled_group():
    received = []

    @with_option_groups
    def command(options: Options, last: bool = False) -> None:
        received.append((options, last))

    app = typer.Typer()
    app.command()(command)
    app(["--short", "3", "--off", "--plain-name", "7", "--last"], standalone_mode=False)
    assert received == [(Options(plain_name=7, renamed="3", switch=False), True)]


def test_every_option_is_an_argument_of_a_pipeline():
    known = {
        name
        for pipeline in (InfinityPipeline, InfinityStarPipeline)
        for name in inspect.signature(pipeline.__call__).parameters
    }
    groups = (SizeOptions, SamplingOptions, VideoOptions)
    named = {name for group in groups for name in group.option_names()} - {"size"}
    assert named <= known | {"smooth"}
    assert named < set(OPTION_NAMES)


def test_annotations_of_python_3_10():
    """There a parameter with default None has an optional annotation, which would hide the option's name."""
    hint = Annotated[int | None, typer.Option("-n", "--number")]
    assert _declared(Optional[hint]) is hint  # noqa: UP045  # what Python 3.10 makes of it
    assert _declared(hint) is hint
    assert _declared(int | None) == int | None
