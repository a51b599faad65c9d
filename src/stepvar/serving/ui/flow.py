"""What happens when a button is pressed or a slider is moved: views of the page, one after the other."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from stepvar.evaluation.figure import format_seconds
from stepvar.serving.drawing import Cancelled, Drawn, DrawSettings
from stepvar.serving.errors import RequestError
from stepvar.serving.following import FollowedJob, Preview, ScaleDone
from stepvar.serving.server import Server
from stepvar.serving.ui import fragments, results
from stepvar.serving.ui.files import inline, keep_drawn
from stepvar.serving.ui.form import Ask, previews_of, read_form, read_plan
from stepvar.serving.ui.fragments import Shown
from stepvar.serving.ui.plans import LatePlans
from stepvar.serving.ui.results import Runs

logger = logging.getLogger(__name__)

View = dict[str, Any]
"""New contents by part of the page: status, dense, pruned, kept, times, gallery, visit."""

_REMEMBERED = 8
_GALLERY = 24
_TITLES = {"dense": "Dense", "pruned": "Accelerated"}
_UNEXPECTED = "The page failed on this request; the program's log says why."


@dataclass(frozen=True)
class Visit:
    """What the page remembers of one visitor.

    Attributes:
        last: What was drawn last; a slider draws it again.
        shown: The gallery, the last one first.
    """

    last: Ask | None = None
    shown: tuple[Shown, ...] = ()

    def with_shown(self, shown: Shown) -> Visit:
        """With one more picture in the gallery."""
        return replace(self, shown=(shown, *self.shown)[:_GALLERY])


@dataclass
class Flow:
    """The page's work around one server.

    Attributes:
        server: Model and queue.
        plans: Plans of the model.
        dense: The last dense pictures, by what was asked for: a slider draws only the accelerated one.
    """

    server: Server
    plans: LatePlans
    dense: OrderedDict[Any, Runs] = field(default_factory=OrderedDict)

    async def draw(
        self, values: Mapping[str, Any], shares: Sequence[Any], visit: Visit
    ) -> AsyncGenerator[View, None]:
        """Draws what the form says: dense, accelerated, then what is computed of both."""
        async with aclosing(self._guarded(self._draw(values, shares, visit))) as views:
            async for view in views:
                yield view

    async def redraw(self, name: Any, shares: Sequence[Any], visit: Visit) -> AsyncGenerator[View, None]:
        """Draws the last picture with another plan; nothing where nothing was drawn yet."""
        if visit.last is None:
            return
        async with aclosing(self._guarded(self._redraw(name, shares, visit, visit.last))) as views:
            async for view in views:
                yield view

    def describe_plan(self, name: Any, shares: Sequence[Any]) -> str:
        """What a plan runs at the model's own size, in a sentence; or what is wrong with it."""
        settings = DrawSettings(None, "none", None, False)
        try:
            plan = read_plan(name, shares, settings, self.server, self.plans)
            summary = self.server.drawer.pipeline.summary(plan)
        except (RequestError, ValueError) as error:
            return str(error)
        saved = summary.dense_flops / max(summary.flops, 1)
        most = "At most " if summary.plan.decides else ""
        tokens = f"{summary.tokens:,} of {summary.dense_tokens:,} tokens"
        return f"{most}{tokens} run: {saved:.2f} x fewer operations than dense."

    async def _guarded(self, views: AsyncGenerator[View, None]) -> AsyncGenerator[View, None]:
        """The views, and one sentence for whatever goes wrong."""
        try:
            async for view in views:
                yield view
        except RequestError as error:
            yield {"status": fragments.status(error.message, error=True)}
        except Cancelled:
            yield {"status": fragments.status("Stopped.")}
        except Exception:  # the page must live on, and show no traceback
            logger.exception("unexpected error on the page")
            yield {"status": fragments.status(_UNEXPECTED, error=True)}

    async def _draw(
        self, values: Mapping[str, Any], shares: Sequence[Any], visit: Visit
    ) -> AsyncGenerator[View, None]:
        ask = await asyncio.to_thread(read_form, values, shares, self.server, self.plans)
        if self.server.warm_up is not None:
            self.server.warm_up.cancelled.set()  # nobody waits for it
        blank = fragments.empty_card
        yield {
            "status": fragments.status("Drawing."),
            "dense": blank(_TITLES["dense"], "drawn first" if ask.dense else "not asked for"),
            "pruned": blank(_TITLES["pruned"], "drawn next" if ask.dense else "drawn first"),
            "kept": blank("Kept tokens", "known when it is drawn"),
            "times": "",
        }
        dense: Runs | None = None
        if ask.dense:
            async for view in self._grow(ask, ask.dense_settings, "dense"):
                if isinstance(view, Runs):
                    dense = view
                else:
                    yield view
            assert dense is not None, "a picture that is drawn, or an exception"
            visit = visit.with_shown(_shown(ask, dense, "dense"))
            yield {"gallery": fragments.gallery(visit.shown), "visit": visit}
        async for view in self._accelerate(ask, dense, visit):
            yield view

    async def _redraw(
        self, name: Any, shares: Sequence[Any], visit: Visit, last: Ask
    ) -> AsyncGenerator[View, None]:
        plan = await asyncio.to_thread(read_plan, name, shares, last.settings, self.server, self.plans)
        settings = replace(last.settings, pruning=plan)
        title = self.plans.title(name, [float(share or 0.0) / 100.0 for share in shares])
        ask = replace(last, settings=settings, plan=title)
        try:
            await asyncio.to_thread(self.server.drawer.check, ask.job(settings))
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        yield {"status": fragments.status("Drawing with the new plan.")}
        async for view in self._accelerate(ask, self.dense.get(_dense_key(ask)), visit):
            yield view

    async def _accelerate(self, ask: Ask, dense: Runs | None, visit: Visit) -> AsyncGenerator[View, None]:
        """Draws the accelerated picture, and shows it beside the dense one where there is one."""
        pruned: Runs | None = None
        async for view in self._grow(ask, ask.settings, "pruned"):
            if isinstance(view, Runs):
                pruned = view
            else:
                yield view
        assert pruned is not None, "a picture that is drawn, or an exception"
        overlays = await asyncio.to_thread(results.overlays, self.server, pruned)
        visit = replace(visit.with_shown(_shown(ask, pruned, ask.plan)), last=ask)
        yield {
            "kept": fragments.kept_card(overlays, f"kept-{secrets.token_hex(4)}"),
            "gallery": fragments.gallery(visit.shown),
            "visit": visit,
        }
        if ask.rounds > 1:
            wanted = {"dense": ask.dense_settings} if dense is not None else {}
            async for view in self._measure(ask, {**wanted, "pruned": ask.settings}):
                if "reports" in view:
                    pruned = replace(pruned, reports=tuple(view["reports"]["pruned"]))
                    dense = dense and replace(dense, reports=tuple(view["reports"]["dense"]))
                else:
                    yield view
            yield {"pruned": _finished("pruned", ask, pruned)}
            if dense is not None:
                yield {"dense": _finished("dense", ask, dense)}
        if dense is not None:
            self._remember(_dense_key(ask), dense)
        yield {"times": await asyncio.to_thread(self._times, ask, dense, pruned)}
        yield {"status": fragments.status(f"Done, seed {ask.seed}.")}

    async def _grow(self, ask: Ask, settings: DrawSettings, part: str) -> AsyncGenerator[View | Runs, None]:
        """Draws one picture: the card while it grows, then finished, then its runs."""
        title = _TITLES[part]
        schedule = self.server.drawer.schedule(settings)
        previews = sorted(previews_of(ask, self.server))
        followed = FollowedJob(
            ask.job(settings, frozenset(previews)), self.server.engine, self.server.settings.timeout
        )
        place, done = None, 0
        yield {part: fragments.growing_card(title, None, 0, len(schedule), "")}
        async with aclosing(followed.events()) as events:
            async for event in events:
                if isinstance(event, Drawn):
                    file = await asyncio.to_thread(
                        keep_drawn, self.server.store, event, ask, "dense" if part == "dense" else ask.plan
                    )
                    runs = Runs(event, (event.report,), file)
                    yield {part: _finished(part, ask, runs)}
                    yield runs
                    return
                if isinstance(event, ScaleDone):
                    done = event.scale
                elif isinstance(event, Preview):
                    place = await asyncio.to_thread(inline, event.image)
                if isinstance(event, Preview) or not previews:
                    grid = str(schedule[done])
                    yield {part: fragments.growing_card(title, place, done + 1, len(schedule), grid)}

    async def _measure(self, ask: Ask, settings: Mapping[str, DrawSettings]) -> AsyncGenerator[View, None]:
        """Runs everything in turn, as often as was asked for; the last view has the reports."""
        reports: dict[str, list[Any]] = {name: [] for name in settings}
        for turn in range(ask.rounds):
            yield {"status": fragments.status(f"Measuring, round {turn + 1} of {ask.rounds}.")}
            for name, wanted in settings.items():
                followed = FollowedJob(ask.job(wanted), self.server.engine, self.server.settings.timeout)
                async with aclosing(followed.events()) as events:
                    async for event in events:
                        if isinstance(event, Drawn):
                            reports[name].append(event.report)
        yield {"reports": reports}

    def _times(self, ask: Ask, dense: Runs | None, pruned: Runs) -> str:
        """The card of the times, with the comparison as a file where there is one."""
        if dense is None:
            run = results.generated(self.server, ask, pruned)
            note = results.rounds_note(pruned)
            return fragments.times_card([("Fast", run)], "Where the time goes", note)
        comparison = results.compared(self.server, ask, dense, pruned)
        device = comparison.machine
        threads = f"{device['threads']} thread{'s'[: device['threads'] != 1]}"
        machine = f"{device['device_name']}, {threads}"
        note = f"{results.rounds_note(pruned)} {machine}; previews are not counted."
        file = results.keep_comparison(self.server, ask, comparison)
        runs = [("Dense", comparison.dense), ("Fast", comparison.pruned)]
        return fragments.times_card(runs, fragments.comparison_line(comparison), note, file)

    def _remember(self, key: Any, dense: Runs) -> None:
        self.dense[key] = dense
        self.dense.move_to_end(key)
        while len(self.dense) > _REMEMBERED:
            self.dense.popitem(last=False)


def _finished(part: str, ask: Ask, runs: Runs) -> str:
    note = runs.tokens if part == "dense" else f"{ask.plan}, {runs.tokens}"
    alt = f"{ask.prompt}, {_TITLES[part].lower()}"
    return fragments.finished_card(_TITLES[part], runs.seconds, note, runs.file, alt)


def _shown(ask: Ask, runs: Runs, plan: str) -> Shown:
    return Shown(runs.file, ask.prompt, f"{plan}, {format_seconds(runs.seconds)}, seed {ask.seed}")


def _dense_key(ask: Ask) -> Any:
    settings = ask.dense_settings
    return (
        ask.prompt,
        ask.negative,
        ask.seed,
        settings.size,
        settings.guidance_scale,
        settings.seconds,
        ask.rounds,
    )
