"""Drawing pictures for the laboratory, and measuring them against the dense run's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepvar.embedded.scenes import Prompt, check
from stepvar.evaluation.features import Extractor
from stepvar.evaluation.fidelity import bounded_psnr, high_frequency_energy, ssim, value_agreement
from stepvar.evaluation.scenes import ASPECTS

if TYPE_CHECKING:
    from stepvar.generation.report import Report
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.base import PruningMethod

Pixels = NDArray[np.uint8]

_DIGITS = 6


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    prompt: Prompt
    seed: int

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt.text,
            "category": self.prompt.category,
            "held_out": self.prompt.held_out,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures.

    Attributes:
        pictures: uint8 [H, W, 3] each.
        report: How the generation ran.
        seconds: End to end, of the whole batch.
    """

    pictures: list[Pixels]
    report: Report
    seconds: float


def draw(pipeline: NextScalePipeline, jobs: Sequence[Job], pruning: PruningMethod | None) -> Drawn:
    """Draws a batch."""
    started = time.perf_counter()
    result = pipeline([job.prompt.text for job in jobs], seed=[job.seed for job in jobs], pruning=pruning)
    seconds = time.perf_counter() - started
    return Drawn([np.asarray(image) for image in result.images], result.report, seconds)


def measure(drawn: Drawn, dense: Drawn, jobs: Sequence[Job], extractor: Extractor) -> dict[str, Any]:
    """Everything that tables need to know of a batch, one entry a picture.

    Args:
        drawn: The pictures.
        dense: The dense run's, of the same jobs.
        jobs: What was asked for.
        extractor: For Fréchet distances.
    """
    pairs = list(zip(drawn.pictures, dense.pictures, strict=True))
    verdicts = [check(picture, job.prompt.spec) for picture, job in zip(drawn.pictures, jobs, strict=True)]
    features = extractor(np.stack(drawn.pictures))
    return {
        "seconds": round(drawn.seconds, _DIGITS),
        "psnr": [round(bounded_psnr(*pair), _DIGITS) for pair in pairs],
        "ssim": [round(ssim(*pair), _DIGITS) for pair in pairs],
        "agreement": [round(_agreement(drawn, dense, index), _DIGITS) for index in range(len(jobs))],
        "detail": [round(high_frequency_energy(picture), _DIGITS) for picture in drawn.pictures],
        "passed": [verdict.passed for verdict in verdicts],
        "aspects": {name: [bool(getattr(verdict, name)) for verdict in verdicts] for name in ASPECTS},
        "features": [[float(f"{value:.6g}") for value in row] for row in features],
    }


def _agreement(drawn: Drawn, dense: Drawn, image: int) -> float:
    """Share of equal bits over the tokens of the scales that both ran."""
    shares = value_agreement(drawn.report.choices, dense.report.choices, image)
    tokens = {entry.plan.scale.index: entry.plan.scale.tokens for entry in dense.report.scales}
    return sum(tokens[index] * share for index, share in shares.items()) / sum(tokens[i] for i in shares)
