"""A whole report: measured step by step, resumable, then written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.evaluation.provenance import fingerprint, versions
from stepvar.metrics.timing import machine
from stepvar.pruning.stepvar import StepVAR
from stepvar.report.charts import require_matplotlib
from stepvar.report.configurations import BEST, FAITHFUL, Configurations
from stepvar.report.experiment import Experiment
from stepvar.report.folder import NUMBERS, PAGE, ReportFolder
from stepvar.report.metrics import Metrics
from stepvar.report.models import Models
from stepvar.report.other_report import read_report
from stepvar.report.page import render
from stepvar.report.protocol import DEFAULT_MINUTES, Protocol, protocol_for
from stepvar.report.results import Results
from stepvar.report.steps import Advance, all_steps, measure_machine, run_steps

if TYPE_CHECKING:
    from stepvar.metrics.features import Extractor
    from stepvar.metrics.perceptual import PerceptualDistance
    from stepvar.models.pipeline import NextScalePipeline


@dataclass(frozen=True)
class Outcome:
    """A finished report.

    Attributes:
        page: The HTML page.
        numbers: Everything it shows, a JSON document.
        resumed: Steps that an earlier run had done.
        steps: All of them.
    """

    page: Path
    numbers: dict[str, Any]
    resumed: int
    steps: int


@dataclass(frozen=True)
class RunPlan:
    """The work of a run, announced before it starts.

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


Announce = Callable[[RunPlan], None]


def reproduce(
    pipeline: NextScalePipeline,
    folder: Path,
    *,
    minutes: float = DEFAULT_MINUTES,
    protocol: Protocol | None = None,
    extractor: Extractor | None = None,
    lpips: PerceptualDistance | None = None,
    cascade: NextScalePipeline | None = None,
    rules: Mapping[str, StepVAR] | None = None,
    plans: Mapping[str, StepVAR] | None = None,
    beside: Path | None = None,
    announce: Announce | None = None,
    advance: Advance | None = None,
) -> Outcome:
    """Measures every table and figure, and writes the report.

    A run that was interrupted goes on with its own counts; pictures and times that are there already are
    not measured again.

    Args:
        pipeline: A model on its device. One that reads no text is given classes; scenes are checked in square
            pictures of 64 pixels or more.
        folder: Of the report; new, empty, or holding this very run.
        minutes: How long it may take; chooses the counts of a new run.
        protocol: Counts, instead of choosing them.
        extractor: Features for Fréchet distances and diversity; by default the model's own tokenizer's.
        lpips: From `stepvar.metrics.perceptual.load_lpips`, where its weights are at hand.
        cascade: A second, smaller model of the same visual tokenizer: cascades are then compared too.
        rules: Methods with a score or a recovery of your own, such as `{"mine": StepVAR(score=function)}`;
            they stand under these names in every table of methods.
        plans: Plans of your own, from `stepvar.load_plan` for example; they stand under these names beside
            the plans that were searched for this model.
        beside: Folder of another finished report, such as that of another model: its verdicts stand beside
            these. A finished run given again is only written anew.
        announce: Called with the plan of the run before it starts.
        advance: Called with the progress.

    Raises:
        ValueError: When the folder holds another run or other files, the two models do not belong together,
            the model needs more than a prompt, or matplotlib is missing.
    """
    require_matplotlib()
    if not minutes > 0:
        raise ValueError(f"minutes is {minutes:g}; a report needs some time.")
    pipeline.require_prompts_alone("A report")
    other = None if beside is None else read_report(beside)
    models = Models(pipeline, Metrics.for_pipeline(pipeline, extractor, lpips), cascade)
    configurations = Configurations(
        models.schedule,
        models.depth,
        cascade is not None,
        {**_searched_plans(models), **(plans or {})},
        rules,
        models.refusal,
    )
    asked = {"protocol": protocol.as_json()} if protocol is not None else {"minutes": minutes}
    store = ReportFolder(folder, _identity(models, configurations, asked))
    for config in configurations:
        # Raises where one cannot run, before anything is generated or written.
        models.summary(config)
    protocol, seconds_per_weight = _start(store, models, configurations, minutes, protocol)
    steps = all_steps(Experiment(models, protocol, configurations))
    left = [step for step in steps if store.load(step.name) is None]
    weight = sum(step.weight for step in left)
    done = len(steps) - len(left)
    if announce is not None:
        estimate = None if seconds_per_weight is None else weight * seconds_per_weight
        announce(RunPlan(protocol, len(steps), done, weight, estimate))
    run_steps(store, left, advance)
    page, document = render(Results(store, configurations, protocol), other)
    store.write_text(NUMBERS, json.dumps(document, indent=1, allow_nan=False))
    return Outcome(store.write_text(PAGE, page), document, done, len(steps))


def _start(
    store: ReportFolder,
    models: Models,
    configurations: Configurations,
    minutes: float,
    protocol: Protocol | None,
) -> tuple[Protocol, float | None]:
    """Counts of a run, chosen or those of an earlier start; and seconds a dense picture, where known."""
    if store.run is None:
        seconds_per_weight: float | None = None
        if protocol is None:
            speed = measure_machine(models, configurations)
            seconds_per_weight = speed.batched + speed.measuring
            protocol = protocol_for(minutes, speed)
        store.start({**protocol.as_json(), "seconds_per_weight": seconds_per_weight})
        return protocol, seconds_per_weight
    stored = dict(store.run["protocol"])
    seconds_per_weight = stored.pop("seconds_per_weight")
    return Protocol(**stored), seconds_per_weight


def _searched_plans(models: Models) -> dict[str, StepVAR]:
    """Presets that were searched for on a model like this one, where its schedule has their scales."""
    presets = models.pipeline.presets
    plans = {name: presets[name].method for name in (BEST, FAITHFUL) if name in presets}
    return {
        name: plan
        for name, plan in plans.items()
        if isinstance(plan, StepVAR) and models.refusal(plan) is None
    }


def _identity(models: Models, configurations: Configurations, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that the numbers of a run depend on."""
    pipeline, second = models.pipeline, models.refiner
    height, width = models.size
    libraries = versions()
    return {
        "model": pipeline.origin.rpartition("/")[2],
        "weights": fingerprint(pipeline),
        **({} if second is None else {"cascade": fingerprint(second)}),
        "size": f"{width} x {height}",
        "dtype": str(pipeline.transformer.compute_dtype).removeprefix("torch."),
        "stepvar": libraries.pop("stepvar"),
        "libraries": libraries,
        "machine": machine(pipeline._execution_device),
        "configurations": configurations.digest(),
        "features": models.metrics.features,
        "lpips": models.metrics.lpips is not None,
        **asked,
    }
