"""`reproduce`: the whole report, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.evaluation.provenance import fingerprint, versions
from stepvar.metrics.timing import machine
from stepvar.pruning.stepvar import StepVAR
from stepvar.report.charts import require_matplotlib
from stepvar.report.contestants import BEST, FAITHFUL, Field
from stepvar.report.folder import NUMBERS, PAGE, ReportFolder
from stepvar.report.inputs import Models
from stepvar.report.metrics import Metrics
from stepvar.report.page import render
from stepvar.report.protocol import DEFAULT_MINUTES, Protocol, protocol_for
from stepvar.report.results import Results
from stepvar.report.steps import Advance, Study, measure_pace, run_steps

if TYPE_CHECKING:
    from stepvar.metrics.features import Extractor
    from stepvar.metrics.perceptual import PerceptualDistance
    from stepvar.models.pipeline import NextScalePipeline


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        page: The HTML page.
        numbers: What it shows.
        resumed: Steps that an earlier run had done.
        steps: All of them.
    """

    page: Path
    numbers: dict[str, Any]
    resumed: int
    steps: int


Announce = Callable[["Plan"], None]


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, told before it starts.

    Attributes:
        protocol: Counts.
        steps: How many there are; `done` of them were found in the folder.
        weight: Work left, in dense pictures.
        seconds: Roughly how long that takes; None where it was not estimated.
    """

    protocol: Protocol
    steps: int
    done: int
    weight: float
    seconds: float | None


def reproduce(
    pipeline: NextScalePipeline,
    folder: Path,
    *,
    minutes: float = DEFAULT_MINUTES,
    protocol: Protocol | None = None,
    extractor: Extractor | None = None,
    lpips: PerceptualDistance | None = None,
    cascade: NextScalePipeline | None = None,
    announce: Announce | None = None,
    advance: Advance | None = None,
) -> Outcome:
    """Measures every table and figure, and writes the report.

    A run that was interrupted goes on with its own counts; pictures and times that are there already are
    not measured again.

    Args:
        pipeline: A model that knows the scenes' words, on its device.
        folder: Of the report; new, empty, or holding this very run.
        minutes: How long it may take; chooses the counts of a new run.
        protocol: Counts, instead of choosing them.
        extractor: Features for Fréchet distances and diversity; by default the model's own tokenizer's.
        lpips: From `stepvar.metrics.perceptual.load_lpips`, where its weights are at hand.
        cascade: A second, smaller model of the same visual tokenizer: then cascades compete too.
        announce: Told what is going to happen, before it does.
        advance: Told of progress.

    Raises:
        ValueError: When the folder holds another run or other files, the two models do not belong together,
            or matplotlib is missing.
    """
    require_matplotlib()
    if not minutes > 0:
        raise ValueError(f"minutes is {minutes:g}; a report needs some time.")
    field = Field(
        pipeline.schedule(), pipeline.summary().plan.depth, cascade is not None, _own_plans(pipeline)
    )
    models = Models(pipeline, Metrics.of(pipeline, extractor, lpips), cascade)
    asked = {"protocol": protocol.as_json()} if protocol is not None else {"minutes": minutes}
    store = ReportFolder(folder, _identity(models, field, asked))
    for member in field:
        # Raises where one cannot run, before anything is drawn or written.
        models.summary(member)
    if store.run is None:
        seconds_per_weight: float | None = None
        if protocol is None:
            pace = measure_pace(models, field)
            seconds_per_weight = pace.batched + pace.judging
            protocol = protocol_for(minutes, pace)
        store.start({**protocol.as_json(), "seconds_per_weight": seconds_per_weight})
    store.sweep()
    stored = dict(store.run["protocol"])
    seconds_per_weight = stored.pop("seconds_per_weight")
    protocol = Protocol(**stored)
    steps = Study(models, protocol, field).steps()
    left = [step for step in steps if store.load(step.name) is None]
    weight = sum(step.weight for step in left)
    done = len(steps) - len(left)
    if announce is not None:
        estimate = None if seconds_per_weight is None else weight * seconds_per_weight
        announce(Plan(protocol, len(steps), done, weight, estimate))
    for _name in run_steps(store, left, advance):
        pass
    page, document = render(Results(store, field, protocol))
    store.write_text(NUMBERS, json.dumps(document, indent=1, allow_nan=False))
    return Outcome(store.write_text(PAGE, page), document, done, len(steps))


def _own_plans(pipeline: NextScalePipeline) -> dict[str, StepVAR]:
    """Presets that were searched for on a model like this one, where its schedule has their scales."""
    found = {}
    for name in (BEST, FAITHFUL):
        preset = pipeline.presets.get(name)
        plan = None if preset is None else preset.method
        if isinstance(plan, StepVAR):
            try:
                pipeline.summary(plan)
            except ValueError:
                continue
            found[name] = plan
    return found


def _identity(models: Models, field: Field, asked: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs one: everything that their numbers depend on."""
    pipeline, second = models.pipeline, models.refiner
    height, width = pipeline.transformer.size_table.pixels(field.schedule)
    if height != width:
        raise ValueError(
            f"Scenes are square, and this model draws {width} x {height} pixels: name another one."
        )
    told = versions()
    return {
        "model": pipeline.origin.rpartition("/")[2],
        "weights": fingerprint(pipeline),
        **({} if second is None else {"cascade": fingerprint(second)}),
        "size": f"{width} x {height}",
        "dtype": str(pipeline.transformer.compute_dtype).removeprefix("torch."),
        "stepvar": told.pop("stepvar"),
        "libraries": told,
        "machine": machine(pipeline._execution_device),
        "contestants": field.digest(),
        "features": models.judges.features,
        "lpips": models.judges.lpips is not None,
        **asked,
    }
