"""What the page's form says, checked: one sentence for everything that cannot be drawn."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepvar.pruning.presets import Pruning
from stepvar.serving.drawing import DrawSettings, Job, preview_steps
from stepvar.serving.errors import RequestError
from stepvar.serving.requests import FRESH_SEEDS, check_text, parse_size
from stepvar.serving.schemas import MAXIMUM_SEED
from stepvar.serving.server import Server
from stepvar.serving.ui.plans import SLIDERS_ONLY, LatePlans

MOST_ROUNDS = 9


@dataclass(frozen=True)
class Ask:
    """A form that can be drawn.

    Attributes:
        prompt, negative, seed: As for a job.
        settings: Of the accelerated picture.
        plan: Its plan in a word.
        dense: Whether the dense picture is wanted beside it.
        rounds: Measured rounds; 1 measures what is shown.
    """

    prompt: str
    negative: str | None
    seed: int
    settings: DrawSettings
    plan: str
    dense: bool = True
    rounds: int = 1

    @property
    def dense_settings(self) -> DrawSettings:
        """Of the picture that it is compared with."""
        return replace(self.settings, pruning="none")

    def job(self, settings: DrawSettings, previews: frozenset[int] = frozenset()) -> Job:
        """A picture of it."""
        return Job(self.prompt, self.negative, self.seed, settings, previews)


def read_form(values: Mapping[str, Any], shares: Sequence[Any], server: Server, plans: LatePlans) -> Ask:
    """Reads the form and asks the model whether it can draw it.

    Args:
        values: By name of the field: prompt, plan, dense, seed, size, negative, guidance, seconds, rounds.
        shares: What the sliders leave out, in percent.

    Raises:
        RequestError: One sentence that says what is wrong.
    """
    prompt, negative = str(values["prompt"] or ""), str(values["negative"] or "").strip() or None
    check_text("prompt", prompt, server.settings)
    if negative:
        check_text("negative_prompt", negative, server.settings)
    seed = _number(values["seed"], "The seed", 0, MAXIMUM_SEED, whole=True)
    guidance = _number(values["guidance"], "Guidance", 0, 1000)
    settings = DrawSettings(
        size=parse_size(str(values["size"] or "auto").strip()),
        pruning="none",
        guidance_scale=guidance,
        has_negative=negative is not None,
        seconds=_seconds(values["seconds"], server),
    )
    ask = Ask(
        prompt=prompt.strip(),
        negative=negative,
        seed=secrets.randbelow(FRESH_SEEDS) if seed is None else int(seed),
        settings=replace(settings, pruning=read_plan(values["plan"], shares, settings, server, plans)),
        plan=plans.title(values["plan"], _fractions(shares)),
        dense=bool(values["dense"]),
        rounds=int(_number(values["rounds"], "The number of rounds", 1, MOST_ROUNDS, whole=True) or 1),
    )
    try:
        server.drawer.check(ask.job(ask.dense_settings))
        server.drawer.check(ask.job(ask.settings))
    except ValueError as error:
        raise RequestError(400, str(error)) from error
    return ask


def read_plan(
    name: Any, shares: Sequence[Any], settings: DrawSettings, server: Server, plans: LatePlans
) -> Pruning:
    """The plan that preset and sliders say, for a size.

    Raises:
        RequestError: When there is no such preset, size or share, or nothing is left out.
    """
    if not isinstance(name, str) or (name != SLIDERS_ONLY and name not in plans.presets):
        raise RequestError(400, f"There is no plan {str(name)[:40]!r}: take one from the list.")
    try:
        return plans.plan(name, _fractions(shares), server.drawer.schedule(settings))
    except ValueError as error:
        raise RequestError(400, str(error)) from error


def previews_of(ask: Ask, server: Server) -> frozenset[int]:
    """Scales after which the page shows the picture so far: all but the last, where the model can."""
    if not server.drawer.pipeline.draws_previews:
        return frozenset()
    scales = server.drawer.scales(ask.settings)
    return preview_steps(scales, scales)


def _fractions(shares: Sequence[Any]) -> list[float]:
    values = [_number(share, "A slider", 0, 100) for share in shares]
    return [(value or 0.0) / 100.0 for value in values]


def _seconds(value: Any, server: Server) -> float | None:
    if not server.drawer.pipeline.draws_videos:
        return None
    return _number(value, "The length in seconds", 0, 3600)


def _number(value: Any, title: str, least: float, most: float, whole: bool = False) -> float | None:
    """A field that holds a number, or nothing."""
    if value is None or not str(value).strip():
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise RequestError(400, f"{title} is {str(value)[:40]!r}; give {kind} from {least:,} to {most:,}.")
    return number
