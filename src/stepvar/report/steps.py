"""All steps of a report in their order, their estimated cost, and the loop that runs what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from stepvar.report import analysis, measurements
from stepvar.report.configurations import ABLATION, TIERS, Configurations
from stepvar.report.experiment import Experiment, Step
from stepvar.report.folder import ReportFolder
from stepvar.report.gallery import gallery_pictures
from stepvar.report.models import Models
from stepvar.report.protocol import MachineSpeed, Protocol
from stepvar.report.samples import measure

Advance = Callable[[float, str], None]
"""Called with the work just done, in dense pictures, and the name of the step."""


def all_steps(experiment: Experiment) -> list[Step]:
    """Everything to do, in order: what every table needs comes first."""
    configurations, weight = experiment.configurations, experiment.weight(experiment.configurations)
    others = [config for name in ("fastervar", "others") for _, config in configurations.table(name)]
    weighed = [config for config in configurations if config.tier != ABLATION or config in others]
    return [
        Step("costs", 0.1, partial(measurements.costs, experiment)),
        Step("memory", experiment.weight(weighed), partial(measurements.memory, experiment, weighed)),
        *(
            Step(f"gallery-{index:02}", weight + 1, partial(gallery_pictures, experiment, index))
            for index in range(experiment.protocol.gallery)
        ),
        *_analysis_steps(experiment),
        *_picture_steps(experiment),
        *(
            Step(f"times-{turn:02}", weight, partial(measurements.times, experiment, turn))
            for turn in range(experiment.protocol.rounds)
        ),
        *_diversity_steps(experiment),
    ]


def _analysis_steps(experiment: Experiment) -> Iterator[Step]:
    """One step an experiment about why pruning works; the perturbation has one a scale."""
    pictures = min(experiment.protocol.analysis_pictures, len(experiment.samples))
    for index in range(len(experiment.configurations.schedule)):
        run = partial(analysis.perturb, experiment, index, pictures)
        yield Step(f"perturbation-{index:02}", 2.0 * pictures, run)
    yield Step("frequencies", 4.0 * pictures, partial(analysis.frequencies, experiment, pictures))
    yield Step("energy", 2.0 * pictures, partial(analysis.residual_energy, experiment, pictures))
    yield Step("saliency", 4.0 * pictures, partial(analysis.saliency, experiment, pictures))


def _picture_steps(experiment: Experiment) -> Iterator[Step]:
    protocol = experiment.protocol
    for index in range(protocol.central_blocks):
        configs = [config for config in experiment.configurations if index < protocol.blocks(config.tier)]
        run = partial(measurements.pictures, experiment, index, configs)
        yield Step(f"pictures-{index:03}", protocol.batch * experiment.weight(configs), run)


def _diversity_steps(experiment: Experiment) -> Iterator[Step]:
    protocol = experiment.protocol
    plans = experiment.weight([config for _, config in experiment.configurations.table("decomposition")])
    for index in range(protocol.diversity_prompts):
        run = partial(measurements.seed_diversity, experiment, index)
        yield Step(f"diversity-{index:02}", plans * protocol.diversity_seeds, run)


def measure_machine(models: Models, configurations: Configurations) -> MachineSpeed:
    """Generates a few pictures to estimate how long everything takes here."""
    least = Protocol(central_blocks=1, main_blocks=1, ablation_blocks=1)
    trial = Experiment(models, least, configurations)
    trial.generate(trial.samples[:1], None)
    single = trial.generate(trial.samples[:1], None).seconds
    # A slow machine is not made to wait for a whole batch that it would have no time for anyway.
    some = trial.samples if single < 1.0 else trial.samples[:2]
    dense = trial.generate(some, None)
    started = time.perf_counter()
    measure(dense, dense, some, models.metrics)
    measuring = (time.perf_counter() - started) / len(some)
    tiers = {tier: [config for config in configurations if config.tier == tier] for tier in TIERS}
    return MachineSpeed(
        single=single,
        batched=dense.seconds / len(some),
        measuring=measuring,
        costs={tier: sum(map(models.relative_cost, configs)) for tier, configs in tiers.items()},
        counts={tier: len(configs) for tier, configs in tiers.items()},
        scales=len(configurations.schedule),
    )


def run_steps(folder: ReportFolder, steps: Sequence[Step], advance: Advance | None = None) -> None:
    """Runs every step whose numbers the folder lacks, and writes them."""
    for step in steps:
        if folder.load(step.name) is None:
            if advance is not None:
                advance(0.0, step.name)
            folder.save(step.name, step.run())
        if advance is not None:
            advance(step.weight, step.name)
