"""What the page computes of finished pictures: comparison, overlays, their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.comparison import Comparison, Generated, compare_runs
from stepvar.evaluation.figure import draw_comparison, draw_kept
from stepvar.evaluation.provenance import versions
from stepvar.evaluation.speed import MethodSpeed
from stepvar.generation.report import Report
from stepvar.media.names import slug
from stepvar.metrics.timing import Samples
from stepvar.serving.drawing import Drawn
from stepvar.serving.server import Server
from stepvar.serving.ui.files import PageFile, inline, keep_picture
from stepvar.serving.ui.form import Ask


@dataclass(frozen=True)
class Runs:
    """A picture, and the runs that its times are taken from.

    Attributes:
        drawn: The picture.
        reports: Of the measured runs.
        file: The picture's file.
    """

    drawn: Drawn
    reports: tuple[Report, ...]
    file: PageFile

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], or of a video [F, H, W, 3]."""
        if len(self.drawn.frames) > 1:
            return np.stack([np.asarray(frame) for frame in self.drawn.frames])
        return np.asarray(self.drawn.image)

    @property
    def samples(self) -> Samples[Report]:
        """The runs with their times."""
        return Samples([run_seconds(report) for report in self.reports], list(self.reports))

    @property
    def seconds(self) -> float:
        """Median time."""
        return self.samples.median

    @property
    def tokens(self) -> str:
        """How many tokens ran."""
        kept, total = self.drawn.report.kept_tokens, self.drawn.report.total_tokens
        return f"all {total:,} tokens" if kept == total else f"{kept:,} of {total:,} tokens"


def run_seconds(report: Report) -> float:
    """Time of a run without its previews: of the text, of every scale, of the decoder."""
    scales = sum(entry.seconds for entry in report.scales if not entry.plan.skipped)
    return report.stages["text"] + scales + report.stages["decode"]


def compared(server: Server, ask: Ask, dense: Runs, pruned: Runs) -> Comparison:
    """The comparison of two pictures of one ask."""
    call: dict[str, Any] = {
        name: value for name, value in ask.settings.arguments().items() if name != "pruning"
    }
    return compare_runs(
        server.drawer.pipeline,
        ask.prompt,
        ask.settings.pruning,
        ask.seed,
        {"dense": dense.pixels, "pruned": pruned.pixels},
        {"dense": dense.samples, "pruned": pruned.samples},
        call,
    )


def keep_comparison(server: Server, ask: Ask, comparison: Comparison) -> PageFile:
    """The figure of `stepvar compare` as a file."""
    settings = {**comparison.as_json(), "versions": versions()}
    name = f"{slug(ask.prompt)}-{ask.seed}-compare"
    return keep_picture(server.store, draw_comparison(comparison), settings, name)


def generated(server: Server, ask: Ask, runs: Runs) -> Generated:
    """A picture and its times, without one to compare with."""
    summary = server.drawer.pipeline.summary(**ask.settings.arguments())
    return Generated(runs.pixels, MethodSpeed(summary, runs.samples))


def overlays(server: Server, runs: Runs) -> list[tuple[str, str, str]]:
    """Address, scale and note of every scale that was pruned or left out."""
    pixels, pipeline = runs.pixels, server.drawer.pipeline
    found = []
    for report in runs.drawn.report.scales:
        plan = report.plan
        if plan.prunes or plan.skipped:
            image = draw_kept(pixels, report, pipeline.frames_of(plan.scale))
            kept = "left out" if plan.skipped else f"{plan.kept:,} of {plan.scale.tokens:,} tokens kept"
            found.append((inline(image), str(plan.scale), kept))
    return found


def rounds_note(runs: Runs) -> str:
    """How the times were measured."""
    count = len(runs.reports)
    return "One run each." if count == 1 else f"Medians of {count} runs in turn."
