"""Models, counts, configurations and samples of one report, and the steps of its measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stepvar.generation.pruner import PruningMethod
from stepvar.report.configurations import OURS, Configuration, Configurations
from stepvar.report.models import Models
from stepvar.report.protocol import Protocol
from stepvar.report.samples import GeneratedBatch, Sample, make_samples

Numbers = dict[str, Any]
"""Raw numbers of a step, in a form that JSON can hold."""


@dataclass(frozen=True)
class Step:
    """One unit of work, done or not done.

    Attributes:
        name: Of its file of raw numbers.
        weight: Its cost, in dense pictures.
        run: Gives the raw numbers.
    """

    name: str
    weight: float
    run: Callable[[], Numbers]


class Experiment:
    """One model, one protocol and all configurations.

    Args:
        models: Generate the pictures, with the metrics that measure them.
        protocol: How much is measured.
        configurations: What is compared.

    Attributes:
        samples: Prompts and seeds; configurations of a lower tier use the first ones.
    """

    def __init__(self, models: Models, protocol: Protocol, configurations: Configurations) -> None:
        self.models, self.protocol, self.configurations = models, protocol, configurations
        self.samples = make_samples(models.pipeline, models.size, protocol.pictures, protocol.seed)
        self._warm = False

    def block(self, index: int) -> Sequence[Sample]:
        """The samples of one block."""
        return self.samples[index * self.protocol.batch : (index + 1) * self.protocol.batch]

    def generate(self, samples: Sequence[Sample], pruning: PruningMethod | None) -> GeneratedBatch:
        """Pictures of the first model alone, under any method; probes are methods too."""
        return self.models.generate_with(samples, pruning)

    def weight(self, configurations: Sequence[Configuration] | Configurations) -> float:
        """Cost of one picture by each configuration, in dense pictures."""
        return sum(self.models.relative_cost(config) for config in configurations)

    def warm_up(self) -> None:
        """Runs every kind of computation once, so that the first measured one is not slower."""
        if self._warm:
            return
        self.generate(self.samples[:1], None)
        for config in self.configurations:
            if config.drafted or config.name == OURS:
                self.models.generate(self.samples[:1], config)
        self._warm = True
