"""Speed of plans: dense and a model's plans, measured in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from stepvar.evaluation.roofline import MachineLimits, ScaleWork, record_work, share_of_last_scales
from stepvar.metrics.timing import Samples, Spread, interleaved, machine

if TYPE_CHECKING:
    from stepvar.generation.progress import Observer
    from stepvar.generation.report import Report, Summary
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Pruning


def usual_methods(pipeline: NextScalePipeline) -> dict[str, Pruning]:
    """The plans that are measured by default: name -> preset.

    "both" is the paper's plan where it prunes and skips. Where it skips nothing it is called "paper", and a
    model of a resolution with plans of its own, such as "720p-2x", runs those. "best" is measured where there
    is one.
    """
    usual: dict[str, Pruning] = {"dense": None, "skip": "skip"}
    presets = pipeline.presets
    resolution = pipeline.transformer.config.get("resolution")
    own = [name for name in presets if name.startswith(f"{resolution}-")]
    if own:
        return usual | dict(zip(own, own, strict=True))
    skips = getattr(pipeline.resolve_pruning("paper"), "skip", ())
    usual |= {"prune": "prune", "both" if skips else "paper": "paper"}
    return usual | ({"best": "best"} if "best" in presets else {})


@dataclass(frozen=True)
class MethodSpeed:
    """Measurements of one plan.

    Attributes:
        summary: What it planned: tokens, FLOPs.
        samples: Its runs, with their reports.
        dense: The dense plan's runs and summary, to compare with; itself for the dense plan.
        work: What every scale ran, where that was recorded.
        limits: What the machine could do of it.
    """

    summary: Summary
    samples: Samples[Report]
    dense: MethodSpeed | None = None
    work: Sequence[ScaleWork] = ()
    limits: MachineLimits | None = None

    @property
    def seconds(self) -> float:
        """Median time of a call, end to end."""
        return self.samples.median

    def stage(self, name: str) -> float:
        """Median time of "text", "scales" or "decode"."""
        return statistics.median(report.stages[name] for report in self.samples.results)

    def scale_seconds(self) -> list[float]:
        """Median time of every scale; 0 where it is skipped."""
        runs = [[scale.seconds for scale in report.scales] for report in self.samples.results]
        return [statistics.median(times) for times in zip(*runs, strict=True)]

    @property
    def transformer_speedup(self) -> float:
        """Dense time of all scales over this plan's."""
        return (self.dense or self).stage("scales") / self.stage("scales")

    @property
    def flops_ratio(self) -> float:
        """Dense FLOPs of the transformer over this plan's: the speed-up that they promise."""
        return (self.dense or self).summary.flops / self.summary.flops

    def as_json(self) -> dict[str, Any]:
        summary = self.summary
        scales: list[dict[str, Any]] = [
            {
                "scale": str(entry.scale),
                "tokens": entry.scale.tokens,
                "kept": entry.kept,
                "skipped": entry.skipped,
                "flops": cost.flops,
                "seconds": 0.0 if entry.skipped else seconds,
            }
            for entry, cost, seconds in zip(
                summary.plan.scales, summary.costs, self.scale_seconds(), strict=True
            )
        ]
        shares = {}
        if self.limits is not None:
            for scale, work in zip(scales, self.work, strict=True):
                scale["roofline"] = self.limits.describe(work, scale["seconds"])
            shares["product_share_of_last_scales"] = share_of_last_scales(scales)
        return {
            "seconds": self.seconds,
            "speedup": (self.dense or self).seconds / self.seconds,
            "tokens": summary.tokens,
            "flops": summary.flops,
            "flops_ratio": self.flops_ratio,
            "transformer_speedup": self.transformer_speedup,
            "transformer_share_of_promise": self.transformer_speedup / self.flops_ratio,
            "spread": Spread.of(self.samples.seconds).as_json(),
            "stages": {name: self.stage(name) for name in ("text", "scales", "decode")},
            **shares,
            "scales": scales,
        }


def measure_speed(
    pipeline: NextScalePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    repeats: int = 5,
    methods: dict[str, Pruning] | None = None,
    observer: Observer | None = None,
    size: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    roofline: bool = False,
) -> dict[str, Any]:
    """Measures plans in turn, in one process.

    Args:
        pipeline: The model, on its device.
        prompts, seeds: One of each a picture; all pictures are one batch.
        repeats: Measured rounds; one more before them warms up.
        methods: Plans by name, "dense" among them; by default `usual_methods`.
        observer: Called for every scale of every run.
        size: Keyword arguments of the pipeline that set the size.
        sampling: Keyword arguments of the pipeline that set guidance, temperature and so on, and
            what a video is like.
        roofline: Whether every scale is compared with the machine's limits too, in one more run of each plan.

    Returns:
        A JSON document: "methods" by name, and what the measurement depends on.
    """
    size, sampling = size or {}, sampling or {}
    chosen = usual_methods(pipeline) if methods is None else methods
    summaries = {
        name: pipeline.summary(pruning, images=len(prompts), **size, **sampling)
        for name, pruning in chosen.items()
    }

    def run(pruning: Pruning, observer: Observer | None = observer) -> Report:
        return pipeline(
            list(prompts), seed=list(seeds), pruning=pruning, observer=observer, **size, **sampling
        ).report

    device = pipeline._execution_device
    runs = {name: (lambda pruning=pruning: run(pruning)) for name, pruning in chosen.items()}
    samples = interleaved(runs, repeats, device)
    work, limits = {}, None
    if roofline:
        work = {name: record_work(partial(run, pruning)) for name, pruning in chosen.items()}
        limits = MachineLimits.measure(list(work.values()), device)
    dense = MethodSpeed(summaries["dense"], samples["dense"])
    speeds = {
        name: MethodSpeed(summaries[name], samples[name], dense, work.get(name, ()), limits)
        for name in chosen
    }
    settings = samples["dense"].results[0].settings
    return {
        "methods": {name: speed.as_json() for name, speed in speeds.items()},
        "repeats": repeats,
        "images": len(prompts),
        "prompts": list(prompts),
        "seeds": list(seeds),
        "model": settings["model"],
        "width": settings["width"],
        "height": settings["height"],
        "video_seconds": settings.get("seconds"),
        "dtype": settings["dtype"],
        "attention": dense.summary.backend,
        **({"copy_bytes_per_second": limits.copy_rate} if limits else {}),
        **machine(device),
    }
