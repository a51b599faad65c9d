"""Measurements behind the tables: costs, memory, pictures, times and diversity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stepvar.metrics.features import diversity, extract
from stepvar.metrics.memory import with_peak_memory
from stepvar.report.configurations import DENSE, Configuration
from stepvar.report.experiment import Experiment, Numbers
from stepvar.report.metrics import Metrics, renders
from stepvar.report.samples import GeneratedBatch, Sample, as_rows, measure, scenes_of
from stepvar.scenes import Prompt

_DIVERSITY_SEED = 10_000
"""Distance of the diversity's seeds from those of all other pictures."""


def costs(experiment: Experiment) -> Numbers:
    """Tokens, FLOPs and cache of every configuration, computed without running it."""
    models = experiment.models
    return {config.name: models.summary(config).as_json() for config in experiment.configurations}


def memory(experiment: Experiment, configurations: Sequence[Configuration]) -> Numbers:
    """Growth of memory while one picture is generated, in bytes; None where it cannot be measured."""
    device, first = experiment.models.pipeline._execution_device, experiment.samples[:1]
    experiment.generate(first, None)

    def run(config: Configuration) -> Callable[[], GeneratedBatch]:
        return lambda: experiment.models.generate(first, config)

    return {config.name: with_peak_memory(run(config), device)[1] for config in configurations}


def pictures(experiment: Experiment, index: int, configurations: Sequence[Configuration]) -> Numbers:
    """One block of pictures by some configurations, each compared with the dense run's."""
    samples, metrics = experiment.block(index), experiment.models.metrics
    dense = experiment.generate(samples, None)
    measured = {}
    for config in configurations:
        generated = dense if config.kind == DENSE else experiment.models.generate(samples, config)
        measured[config.name] = measure(generated, dense, samples, metrics)
    scenes = scenes_of(samples)
    return {
        "samples": [sample.as_json() for sample in samples],
        "configurations": measured,
        **({} if scenes is None else {"real": _real(scenes, samples, metrics, dense.pictures[0].shape[0])}),
    }


def _real(scenes: Sequence[Prompt], samples: Sequence[Sample], metrics: Metrics, side: int) -> dict[str, Any]:
    """Measures of renders: pictures that show what the prompts ask for."""
    real = renders(scenes, [sample.seed for sample in samples], side)
    return {
        "features": as_rows(metrics.extractor(real)),
        "text_fit": metrics.text_scores(real, [sample.prompt for sample in samples]),
    }


def times(experiment: Experiment, turn: int) -> Numbers:
    """One round: every configuration generates the same picture, in turn; another one in every round.

    Some methods decide by the picture how much they run.
    """
    samples = [experiment.samples[turn % len(experiment.samples)]]
    experiment.warm_up()
    found = {}
    for config in experiment.configurations:
        generated = experiment.models.generate(samples, config)
        found[config.name] = {
            "seconds": generated.seconds,
            "stages": dict(generated.report.stages),
            "scales": [entry.seconds for entry in generated.report.scales],
        }
    return found


def seed_diversity(experiment: Experiment, index: int) -> Numbers:
    """Distance between the pictures of one prompt and different seeds, for the main plans."""
    protocol, metrics = experiment.protocol, experiment.models.metrics
    sample = experiment.samples[index % len(experiment.samples)]
    first = protocol.seed + _DIVERSITY_SEED
    samples = [replace(sample, seed=first + number) for number in range(protocol.diversity_seeds)]
    found = {}
    for label, config in experiment.configurations.table("decomposition"):
        generated = experiment.models.generate(samples, config).pictures
        found[label] = diversity(extract(metrics.extractor, generated))
    return {"prompt": sample.prompt, "distances": found}
