"""Comparison of a dense and a pruned picture, or video, of one seed: fidelity and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.speed import MethodSpeed
from stepvar.metrics.fidelity import psnr, ssim
from stepvar.metrics.timing import Samples, interleaved, machine

if TYPE_CHECKING:
    from stepvar.generation.progress import Observer, ScaleReport
    from stepvar.generation.report import Report
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Pruning


@dataclass(frozen=True)
class Generated:
    """One picture, or video, and its cost.

    Attributes:
        pixels: uint8 [H, W, 3], or the frames of a video [F, H, W, 3].
        speed: Its plan and the times of its runs.
    """

    pixels: NDArray[np.uint8]
    speed: MethodSpeed

    @property
    def report(self) -> Report:
        """Of its last run."""
        return self.speed.samples.results[-1]

    @property
    def seconds(self) -> float:
        return self.speed.seconds

    @property
    def stages(self) -> list[tuple[str, float]]:
        """Median time of the text, of every scale that ran, and of the decoder."""
        speed = self.speed
        scales = [
            (str(entry.plan.scale), seconds)
            for entry, seconds in zip(self.report.scales, speed.scale_seconds(), strict=True)
            if not entry.plan.skipped
        ]
        return [("text", speed.stage("text")), *scales, ("decode", speed.stage("decode"))]


@dataclass(frozen=True)
class Comparison:
    """A dense and a pruned picture of one prompt and seed.

    Attributes:
        prompt, seed: What both share.
        dense, pruned: The pictures.
        machine: The device and its software, on which the times depend.
        frames: For each scale the frames of the video that its maps stand for, one a map.
    """

    prompt: str
    seed: int
    dense: Generated
    pruned: Generated
    machine: dict[str, Any]
    frames: tuple[tuple[int, ...], ...]

    @property
    def is_video(self) -> bool:
        return self.dense.pixels.ndim == 4

    @property
    def psnr(self) -> float | None:
        """In dB; None when the pictures are identical."""
        return psnr(self.dense.pixels, self.pruned.pixels)

    @property
    def ssim(self) -> float:
        """Of a video the mean of its frames."""
        if not self.is_video:
            return ssim(self.dense.pixels, self.pruned.pixels)
        pairs = zip(self.dense.pixels, self.pruned.pixels, strict=True)
        return float(np.mean([ssim(dense, pruned) for dense, pruned in pairs]))

    @property
    def speedup(self) -> float:
        return self.dense.seconds / self.pruned.seconds

    @property
    def changed_scales(self) -> list[ScaleReport]:
        """Scales that the plan prunes or skips."""
        return [report for report in self.pruned.report.scales if report.plan.prunes or report.plan.skipped]

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "psnr": self.psnr,
            "ssim": self.ssim,
            "speedup": self.speedup,
            "dense": self.dense.speed.as_json(),
            "pruned": self.pruned.speed.as_json(),
            "peak_bytes": self.pruned.report.peak_bytes,
            "settings": self.pruned.report.settings,
            "machine": self.machine,
        }


def kept_mask(report: ScaleReport) -> NDArray[np.bool_]:
    """Which tokens of a scale ran for the first picture of a batch, bool [rows, columns].

    The maps of a scale with several frames are side by side.
    """
    scale = report.plan.scale
    mask = np.full(scale.tokens, not report.plan.skipped)
    if report.kept_index is not None:
        mask[:] = False
        mask[report.kept_index[0].cpu().numpy()] = True
    return np.concatenate(mask.reshape(scale.grid), axis=1)


def compare(
    pipeline: NextScalePipeline,
    prompt: str,
    pruning: Pruning,
    seed: int,
    repeats: int = 3,
    observer: Observer | None = None,
    size: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
) -> Comparison:
    """Draws a prompt dense and pruned from one seed.

    Args:
        pipeline: The model, on its device.
        prompt: What to draw.
        pruning: What to prune, as the pipeline takes it.
        seed: Of both pictures.
        repeats: Measured rounds; one more before them warms up.
        observer: Called for every scale of every run.
        size: Keyword arguments of the pipeline that set the size.
        sampling: Further keyword arguments of the pipeline: guidance, temperature, a video's beginning.
    """
    size, sampling = size or {}, sampling or {}
    pixels: dict[str, NDArray[np.uint8]] = {}

    def run(name: str, method: Pruning) -> Report:
        result = pipeline(prompt, seed=seed, pruning=method, observer=observer, **size, **sampling)
        if pipeline.draws_videos:
            pixels[name] = np.stack([np.asarray(frame) for frame in result.frames[0]])
        else:
            pixels[name] = np.asarray(result.images[0])
        return result.report

    samples: dict[str, Samples[Report]] = interleaved(
        {"dense": lambda: run("dense", None), "pruned": lambda: run("pruned", pruning)},
        repeats,
        pipeline._execution_device,
    )
    return compare_runs(pipeline, prompt, pruning, seed, pixels, samples, {**size, **sampling})


def compare_runs(
    pipeline: NextScalePipeline,
    prompt: str,
    pruning: Pruning,
    seed: int,
    pixels: Mapping[str, NDArray[np.uint8]],
    samples: Mapping[str, Samples[Report]],
    call: Mapping[str, Any],
) -> Comparison:
    """The comparison of runs that were made already.

    Args:
        pipeline: The model that drew them.
        prompt, pruning, seed: What was asked for.
        pixels: Of "dense" and "pruned", as in `Generated`.
        samples: Likewise, the runs with their times.
        call: Further keyword arguments of the pipeline's calls.
    """
    dense = MethodSpeed(pipeline.summary(None, **call), samples["dense"])
    pruned = MethodSpeed(pipeline.summary(pruning, **call), samples["pruned"], dense)
    return Comparison(
        prompt,
        seed,
        Generated(pixels["dense"], dense),
        Generated(pixels["pruned"], pruned),
        machine(pipeline._execution_device),
        tuple(pipeline.frames_of(entry.scale) for entry in dense.summary.plan.scales),
    )
