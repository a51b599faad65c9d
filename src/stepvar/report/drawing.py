"""Drawing pictures for the laboratory, and measuring them against the dense run's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.scene_score import ASPECTS
from stepvar.metrics.fidelity import bounded_psnr, high_frequency_energy, ssim, value_agreement
from stepvar.scenes import Prompt, check

if TYPE_CHECKING:
    from stepvar.generation.cascade import Cascade
    from stepvar.generation.pruner import PruningMethod
    from stepvar.generation.report import Report
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.report.metrics import Metrics

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


def draw(
    pipeline: NextScalePipeline,
    jobs: Sequence[Job],
    pruning: PruningMethod | None,
    cascade: Cascade | None = None,
) -> Drawn:
    """Draws a batch, with a drafter where one is given."""
    told = {} if cascade is None else {"cascade": cascade}
    started = time.perf_counter()
    result = pipeline(
        [job.prompt.text for job in jobs], seed=[job.seed for job in jobs], pruning=pruning, **told
    )
    seconds = time.perf_counter() - started
    return Drawn([np.asarray(image) for image in result.images], result.report, seconds)


def measure(drawn: Drawn, dense: Drawn, jobs: Sequence[Job], judges: Metrics) -> dict[str, Any]:
    """Everything that tables need to know of a batch, one entry a picture.

    Args:
        drawn: The pictures.
        dense: The dense run's, of the same jobs.
        jobs: What was asked for.
        judges: Who look at them.
    """
    pairs = list(zip(drawn.pictures, dense.pictures, strict=True))
    verdicts = [check(picture, job.prompt.spec) for picture, job in zip(drawn.pictures, jobs, strict=True)]
    ours, theirs = np.stack(drawn.pictures), np.stack(dense.pictures)
    lpips = {} if judges.lpips is None else {"lpips": _rounded(judges.lpips(ours, theirs))}
    return {
        "seconds": round(drawn.seconds, _DIGITS),
        "psnr": _rounded(bounded_psnr(*pair) for pair in pairs),
        "ssim": _rounded(ssim(*pair) for pair in pairs),
        "likeness": _rounded(judges.likeness(ours, theirs)),
        **lpips,
        "agreement": _rounded(_agreement(drawn, dense, index) for index in range(len(jobs))),
        "detail": _rounded(high_frequency_energy(picture) for picture in drawn.pictures),
        "fit": _rounded(judges.fits(ours, [job.prompt.text for job in jobs])),
        "passed": [verdict.passed for verdict in verdicts],
        "aspects": {name: [bool(getattr(verdict, name)) for verdict in verdicts] for name in ASPECTS},
        "features": as_rows(judges.extractor(ours)),
    }


def as_rows(features: NDArray[Any]) -> list[list[float]]:
    """Features [N, F] in a form that JSON can hold, six digits each."""
    return [[float(f"{value:.6g}") for value in row] for row in features]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def _agreement(drawn: Drawn, dense: Drawn, image: int) -> float:
    """Share of equal bits over the tokens of the scales that both ran."""
    shares = value_agreement(drawn.report.choices, dense.report.choices, image)
    tokens = {entry.plan.scale.index: entry.plan.scale.tokens for entry in dense.report.scales}
    return sum(tokens[index] * share for index, share in shares.items()) / sum(tokens[i] for i in shares)
