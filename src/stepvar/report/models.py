"""The models of a report: one, and at most a second one that continues where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepvar.generation.cascade import Cascade
from stepvar.report.configurations import Configuration
from stepvar.report.metrics import Metrics
from stepvar.report.samples import GeneratedBatch, Sample, generate_samples

if TYPE_CHECKING:
    from stepvar.generation.pruner import PruningMethod
    from stepvar.generation.report import Summary
    from stepvar.generation.schedule import ScaleSchedule
    from stepvar.models.pipeline import NextScalePipeline

_FIXED_SHARE = 0.2
"""Share of a dense picture's time that no plan saves: text, decoder, small scales."""


@dataclass(frozen=True)
class Models:
    """The models that generate the pictures of a report, and the metrics that measure them.

    Attributes:
        pipeline: A model that knows the scenes' words.
        metrics: Networks that measure its pictures.
        refiner: A second model of the same visual tokenizer; None where there is none.
    """

    pipeline: NextScalePipeline
    metrics: Metrics
    refiner: NextScalePipeline | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of every call: a model of videos generates single, square pictures."""
        return {"seconds": 0, "aspect_ratio": 1.0} if self.pipeline.draws_videos else {}

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales of every picture."""
        return self.pipeline.schedule(**self.settings)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every picture."""
        return self.pipeline.pixels(self.schedule)

    @property
    def depth(self) -> int:
        """Layers of the transformer."""
        return self.pipeline.summary(**self.settings).plan.depth

    def generate(self, samples: Sequence[Sample], config: Configuration) -> GeneratedBatch:
        """One batch of pictures of a configuration."""
        if not config.drafted:
            return self.generate_with(samples, config.pruning)
        cascade = Cascade(self.pipeline, config.drafted)
        settings = {**self.settings, "cascade": cascade}
        return generate_samples(self._second, samples, config.pruning, settings)

    def generate_with(self, samples: Sequence[Sample], pruning: PruningMethod | None) -> GeneratedBatch:
        """One batch of pictures of the first model alone, under any method; probes are methods too."""
        return generate_samples(self.pipeline, samples, pruning, self.settings)

    def summary(self, config: Configuration) -> Summary:
        """Tokens, FLOPs and cache of a configuration.

        Raises:
            ValueError: When it cannot run on these models.
        """
        if not config.drafted:
            return self.pipeline.summary(config.pruning, **self.settings)
        cascade = Cascade(self.pipeline, config.drafted)
        return self._second.summary(config.pruning, cascade=cascade, **self.settings)

    def refusal(self, method: PruningMethod | None) -> str | None:
        """Why the first model cannot run a method; None where it can."""
        try:
            self.pipeline.summary(method, **self.settings)
        except ValueError as error:
            return str(error)
        return None

    def relative_cost(self, config: Configuration) -> float:
        """Rough time of a configuration, in dense runs."""
        summary = self.summary(config)
        return _FIXED_SHARE + (1.0 - _FIXED_SHARE) * summary.flops / summary.dense_flops

    @property
    def _second(self) -> NextScalePipeline:
        if self.refiner is None:
            raise ValueError("A cascade needs a second model, and none was given.")
        return self.refiner
