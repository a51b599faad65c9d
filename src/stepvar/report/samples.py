"""Pictures of prompts and seeds, and their measures against the dense run's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.scene_score import ASPECTS
from stepvar.metrics.fidelity import bounded_psnr, high_frequency_energy, ssim, value_agreement
from stepvar.scenes import Prompt, check, evaluation_prompts

if TYPE_CHECKING:
    from stepvar.generation.pruner import PruningMethod
    from stepvar.generation.report import Report
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.report.metrics import Metrics

Pixels = NDArray[np.uint8]

_DIGITS = 6

SMALLEST_SCENE = 64
"""Pixels of a side that `stepvar.scenes.check` needs."""


@dataclass(frozen=True)
class Sample:
    """One picture to generate.

    Attributes:
        prompt: Text, or the number of a class for a model that reads no text.
        seed: Of its noise.
        scene: What the picture should show; None where that cannot be checked.
    """

    prompt: str
    seed: int
    scene: Prompt | None = None

    def as_json(self) -> dict[str, Any]:
        scene = (
            {} if self.scene is None else {"category": self.scene.category, "held_out": self.scene.held_out}
        )
        return {"prompt": self.prompt, "seed": self.seed, **scene}


def make_samples(pipeline: NextScalePipeline, size: tuple[int, int], count: int, seed: int) -> list[Sample]:
    """Prompts of scenes with a seed each; random classes for a model that reads no text.

    Args:
        size: Height and width of the pictures; scenes can be checked in square ones that are not too small.
    """
    if pipeline.reads_text:
        prompts = evaluation_prompts(count, seed)
        checked = size[0] == size[1] >= SMALLEST_SCENE
        return [
            Sample(prompt.text, seed + index, prompt if checked else None)
            for index, prompt in enumerate(prompts)
        ]
    classes = np.random.default_rng(seed).integers(0, pipeline.transformer.config["classes"], count)
    return [Sample(str(number), seed + index) for index, number in enumerate(classes)]


@dataclass(frozen=True)
class GeneratedBatch:
    """A batch of pictures.

    Attributes:
        pictures: uint8 [H, W, 3] each.
        report: How the generation ran.
        seconds: End to end, of the whole batch.
    """

    pictures: list[Pixels]
    report: Report
    seconds: float


def generate_samples(
    pipeline: NextScalePipeline,
    samples: Sequence[Sample],
    pruning: PruningMethod | None,
    settings: Mapping[str, Any] | None = None,
) -> GeneratedBatch:
    """Generates a batch.

    Args:
        settings: Further arguments of the pipeline's call.
    """
    prompts, seeds = [sample.prompt for sample in samples], [sample.seed for sample in samples]
    started = time.perf_counter()
    result = pipeline(prompts, seed=seeds, pruning=pruning, **(settings or {}))
    seconds = time.perf_counter() - started
    return GeneratedBatch([np.asarray(image) for image in result.images], result.report, seconds)


def measure(
    generated: GeneratedBatch, dense: GeneratedBatch, samples: Sequence[Sample], metrics: Metrics
) -> dict[str, Any]:
    """All measures of a batch, one entry a picture.

    Args:
        generated: The pictures.
        dense: The dense run's, of the same samples.
        samples: Their prompts and seeds.
        metrics: Networks that measure them.
    """
    pairs = list(zip(generated.pictures, dense.pictures, strict=True))
    ours, theirs = np.stack(generated.pictures), np.stack(dense.pictures)
    lpips = {} if metrics.lpips is None else {"lpips": _rounded(metrics.lpips(ours, theirs))}
    return {
        "seconds": round(generated.seconds, _DIGITS),
        "psnr": _rounded(bounded_psnr(*pair) for pair in pairs),
        "ssim": _rounded(ssim(*pair) for pair in pairs),
        "scene_distance": _rounded(metrics.scene_distance(ours, theirs)),
        **lpips,
        "agreement": _rounded(_agreement(generated, dense, index) for index in range(len(samples))),
        "detail": _rounded(high_frequency_energy(picture) for picture in generated.pictures),
        **_check_scenes(generated, ours, samples, metrics),
        "features": as_rows(metrics.extractor(ours)),
    }


def _check_scenes(
    generated: GeneratedBatch, pixels: Pixels, samples: Sequence[Sample], metrics: Metrics
) -> dict[str, Any]:
    """Measures against the prompts; none where the samples are classes."""
    scenes = scenes_of(samples)
    if scenes is None:
        return {}
    verdicts = [check(picture, scene.spec) for picture, scene in zip(generated.pictures, scenes, strict=True)]
    return {
        "text_fit": _rounded(metrics.text_scores(pixels, [sample.prompt for sample in samples])),
        "passed": [verdict.passed for verdict in verdicts],
        "aspects": {name: [bool(getattr(verdict, name)) for verdict in verdicts] for name in ASPECTS},
    }


def scenes_of(samples: Sequence[Sample]) -> list[Prompt] | None:
    """What each sample should show; None where one does not say."""
    scenes = [sample.scene for sample in samples if sample.scene is not None]
    return scenes if len(scenes) == len(samples) else None


def as_rows(features: NDArray[Any]) -> list[list[float]]:
    """Features [N, F] in a form that JSON can hold, six digits each."""
    return [[float(f"{value:.6g}") for value in row] for row in features]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def _agreement(generated: GeneratedBatch, dense: GeneratedBatch, image: int) -> float:
    """Share of equal bits over the tokens of the scales that both ran."""
    shares = value_agreement(generated.report.choices, dense.report.choices, image)
    tokens = {entry.plan.scale.index: entry.plan.scale.tokens for entry in dense.report.scales}
    return sum(tokens[index] * share for index, share in shares.items()) / sum(tokens[i] for i in shares)
