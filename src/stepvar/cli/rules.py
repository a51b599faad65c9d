"""Rules from the command line: scores and recoveries by name, or of one's own by module:name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScoreRule = Annotated[
    str | None,
    typer.Option(
        "--score",
        metavar="NAME|MODULE:NAME",
        help="What makes a token important: structure+texture, structure, texture, distance, change, "
        "random, or a function of yours.",
    ),
]
RecoveryRule = Annotated[
    str | None,
    typer.Option(
        "--recovery",
        metavar="NAME|MODULE:NAME",
        help="How pruned positions are filled: nearest, anchor, cache, bilinear, update, guided, or a "
        "class of yours; calibrated comes with a plan of 'stepvar calibrate'.",
    ),
]


def register_rules(score: str | None, recovery: str | None) -> dict[str, str]:
    """Imports rules that are given by module:name; returns names of rules by the field of a method.

    Modules are found in the current folder too. From then on a rule is known by its name, in tables beside
    the built-in ones.

    Raises:
        ValueError: When there is no such rule.
    """
    from stepvar.pruning.recovery import RECOVERIES
    from stepvar.pruning.rules import load_rule
    from stepvar.pruning.scores import SCORERS

    names = {}
    for field, rule, registry in (("score", score, SCORERS), ("recovery", recovery, RECOVERIES)):
        if rule is None:
            continue
        if ":" in rule:
            rule = registry.add(load_rule(rule, Path.cwd()))
        registry.find(rule)
        names[field] = rule
    return names
