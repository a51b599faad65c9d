"""What draws the pictures of a report: one model, and at most a second one that goes on where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepvar.generation.cascade import Cascade
from stepvar.report.contestants import Contestant
from stepvar.report.drawing import Drawn, Job, draw
from stepvar.report.metrics import Metrics

if TYPE_CHECKING:
    from stepvar.generation.report import Summary
    from stepvar.models.pipeline import NextScalePipeline

_FIXED_SHARE = 0.2
"""Share of a dense picture's time that no plan saves: text, decoder, small scales."""


@dataclass(frozen=True)
class Models:
    """What draws the pictures of a report, and what looks at them.

    Attributes:
        pipeline: A model that knows the scenes' words.
        judges: Who measure its pictures.
        refiner: A second model of the same visual tokenizer; None where there is none.
    """

    pipeline: NextScalePipeline
    judges: Metrics
    refiner: NextScalePipeline | None = None

    def draw(self, jobs: Sequence[Job], member: Contestant) -> Drawn:
        """Draws pictures, a batch at a time, as one."""
        if not member.drafted:
            return draw(self.pipeline, jobs, member.pruning)
        return draw(self._second, jobs, member.pruning, Cascade(self.pipeline, member.drafted))

    def summary(self, member: Contestant) -> Summary:
        """What a contestant will run.

        Raises:
            ValueError: When it cannot run on these models.
        """
        if not member.drafted:
            return self.pipeline.summary(member.pruning)
        return self._second.summary(member.pruning, cascade=Cascade(self.pipeline, member.drafted))

    def relative_cost(self, member: Contestant) -> float:
        """Roughly how long a contestant takes, a dense run as one."""
        summary = self.summary(member)
        return _FIXED_SHARE + (1.0 - _FIXED_SHARE) * summary.flops / summary.dense_flops

    @property
    def _second(self) -> NextScalePipeline:
        if self.refiner is None:
            raise ValueError("A cascade needs a second model, and none was given.")
        return self.refiner
