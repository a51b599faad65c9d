"""A GPU in ten minutes: Infinity-2B's dimensions, batch 1 and 8, every plan, eager and compiled, in turn.

    python benchmarks/gpu.py --json gpu.json                       # a GPU; results are written as they come
    python benchmarks/gpu.py --dims embedded --device cpu --dtype float32 --images 1 --repeats 1   # anywhere

Weights are random, so times are those of the published model and pictures are noise. For each plan: median
time end to end and of the transformer, its share of what its FLOPs promise, and for each scale its time, its
share of the rate of the same matrix products alone, kernels launched, and the peak of the memory. Nothing is
installed or downloaded. A budget in minutes (--minutes) leaves out what does not fit, and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dense import build, cast
from stepvar import InfinityPipeline, InfinityVAE, load_embedded
from stepvar.allocator import keep_freed_memory
from stepvar.evaluation.roofline import MachineLimits, record_work, share_of_last_scales
from stepvar.generation.progress import ScaleReport
from stepvar.generation.report import Report
from stepvar.metrics.memory import with_peak_memory
from stepvar.metrics.timing import interleaved, machine

PLANS = ("none", "skip", "prune", "paper", "best", "fastvar", "fastervar")
LAUNCHES = (
    "cudaLaunchKernel",
    "cuLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
SCALE_END = "stepvar scale end"


@dataclass(frozen=True)
class Contest:
    """One batch of pictures on one model.

    Attributes:
        pipeline: With random weights, on its device.
        images: Pictures in the batch.
        text: Features of a prompt, [T, E].
        decode: Whether pixels are decoded.
    """

    pipeline: InfinityPipeline
    images: int
    text: torch.Tensor
    decode: bool = True

    def run(self, plan: str, observer: Any = None) -> Report:
        """Draws the batch by a plan."""
        output = self.pipeline(
            prompt_embeds=[self.text] * self.images,
            seed=list(range(self.images)),
            pruning=None if plan == "none" else plan,
            output_type="pt" if self.decode else "latent",
            observer=observer,
        )
        report: Report = output.report
        return report

    def measure(self, plans: Sequence[str], repeats: int, roofline: bool) -> dict[str, Any]:
        """Times, memory and launches of plans, in turn."""
        device = self.pipeline._execution_device
        samples = interleaved({plan: (lambda plan=plan: self.run(plan)) for plan in plans}, repeats, device)
        work, limits = {}, None
        if roofline:
            work = {plan: record_work(lambda observe, plan=plan: self.run(plan, observe)) for plan in plans}
            limits = MachineLimits.measure(list(work.values()), device)
        entries = {}
        for plan in plans:
            summary = self.pipeline.summary(None if plan == "none" else plan, images=self.images)
            reports = samples[plan].results
            scales = _scales(reports, [cost.flops for cost in summary.costs])
            for index, (scale, launches) in enumerate(zip(scales, self.launches(plan), strict=True)):
                scale["launches"] = launches
                if limits is not None:
                    scale["roofline"] = limits.describe(work[plan][index], scale["seconds"])
            _, peak = with_peak_memory(lambda plan=plan: self.run(plan), device)
            entries[plan] = {
                "seconds": samples[plan].median,
                "stages": {
                    stage: _median([report.stages[stage] for report in reports])
                    for stage in reports[0].stages
                },
                "flops": summary.flops,
                "peak_bytes_beside_weights": peak,
                "product_share_of_last_scales": None if limits is None else share_of_last_scales(scales),
                "scales": scales,
            }
        for entry in entries.values():
            _compare(entry, entries[plans[0]])
        return entries

    def launches(self, plan: str) -> list[int]:
        """Kernels that each scale launches; zeros where there is no CUDA.

        The first scale has what runs before it in it.
        """
        if self.pipeline._execution_device.type != "cuda":
            return [0] * len(self.pipeline.summary().plan.scales)

        def end(report: ScaleReport) -> None:
            with record_function(SCALE_END):
                pass

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            self.run(plan, end)
        events = sorted(profiler.events(), key=lambda event: event.time_range.start)
        counts, scale = Counter[int](), 0
        for event in events:
            scale += event.name == SCALE_END and event.device_type == torch.autograd.DeviceType.CPU
            counts[scale] += event.name in LAUNCHES
        return [counts[index] for index in range(len(self.pipeline.summary().plan.scales))]


@dataclass
class Budget:
    """Time that the script may take.

    Attributes:
        minutes: In all.
        left_out: What did not fit.
    """

    minutes: float
    left_out: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _longest: float = 0.0

    def fits(self, name: str) -> bool:
        """Whether something that takes as long as the longest so far still fits; notes it where not."""
        spent = time.monotonic() - self._started
        if spent + self._longest <= 60.0 * self.minutes:
            return True
        self.left_out.append(name)
        return False

    def took(self, seconds: float) -> None:
        """Learns how long something took."""
        self._longest = max(self._longest, seconds)


def _scales(reports: Sequence[Report], flops: Sequence[int]) -> list[dict[str, Any]]:
    """Plan and median time of every scale."""
    return [
        {
            "scale": str(runs[0].plan.scale),
            "kept": runs[0].plan.kept,
            "skipped": runs[0].plan.skipped,
            "flops": cost,
            "seconds": 0.0 if runs[0].plan.skipped else _median([run.seconds for run in runs]),
        }
        for runs, cost in zip(zip(*(report.scales for report in reports), strict=True), flops, strict=True)
    ]


def _compare(entry: dict[str, Any], dense: dict[str, Any]) -> None:
    """Adds the speed-ups over the first plan, and what the FLOPs promise."""
    promise = dense["flops"] / entry["flops"]
    transformer = dense["stages"]["scales"] / entry["stages"]["scales"]
    entry["speedup"] = dense["seconds"] / entry["seconds"]
    entry["transformer_speedup"] = transformer
    entry["flops_ratio"] = promise
    entry["transformer_share_of_promise"] = transformer / promise


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median())


def build_pipeline(dims: str, dtype: torch.dtype, device: str) -> InfinityPipeline:
    """A pipeline of a published size with random weights, without text encoder; or the embedded model."""
    if dims == "embedded":
        return load_embedded("pictures", dtype).to(device)
    transformer = cast(build(dims, None), dtype)
    torch.manual_seed(1)
    with torch.device(device):
        vae = InfinityVAE(codebook_dim=transformer.config.bits)
    return InfinityPipeline(transformer, vae.to(dtype)).to(device)


def contests(arguments: argparse.Namespace, pipeline: InfinityPipeline) -> Iterator[tuple[str, int, str]]:
    """Name, batch and mode of everything to measure: all batches eager, then all compiled."""
    modes = ("eager",) if arguments.no_compile else ("eager", "compiled")
    for mode, images in itertools.product(modes, arguments.images):
        yield f"{mode}, batch {images}", images, mode


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, within the time; the file of the results is written after each part."""
    pipeline = build_pipeline(arguments.dims, getattr(torch, arguments.dtype), arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    plans = [plan for plan in arguments.plans if plan == "none" or plan in pipeline.presets]
    generator = torch.Generator().manual_seed(2)
    width = pipeline.transformer.config.text_channels
    text = torch.randn(16, width, generator=generator, dtype=torch.float32).to(arguments.device)
    budget, results, compiled = Budget(arguments.minutes), {}, False
    document: dict[str, Any] = {
        "dims": arguments.dims,
        "dtype": arguments.dtype,
        "repeats": arguments.repeats,
        "unknown_plans": sorted(set(arguments.plans) - set(plans)),
        **machine(torch.device(arguments.device)),
        "results": results,
        "left_out": budget.left_out,
    }
    for name, images, mode in contests(arguments, pipeline):
        if not budget.fits(name):
            continue
        started = time.monotonic()
        if mode == "compiled" and not compiled:
            pipeline.transformer.compile_repeated_blocks()
            compiled = True
        contest = Contest(pipeline, images, text, not arguments.no_decode)
        results[name] = contest.measure(plans, arguments.repeats, roofline=mode == "eager")
        budget.took(time.monotonic() - started)
        print(describe(name, results[name]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return document


def describe(name: str, entries: dict[str, Any]) -> str:
    """Two tables: one row a plan, then one row a scale."""
    lines = [
        f"\n{name}",
        f"{'plan':<10}{'time':>9}{'speed':>8}{'transf.':>9}{'speed':>8}{'FLOPs':>8}{'GiB':>8}",
    ]
    for plan, entry in entries.items():
        peak = entry["peak_bytes_beside_weights"]
        lines.append(
            f"{plan:<10}{entry['seconds']:>8.3f}s{entry['speedup']:>7.2f}x{entry['stages']['scales']:>8.3f}s"
            f"{entry['transformer_speedup']:>7.2f}x{entry['flops_ratio']:>7.2f}x"
            f"{'?' if peak is None else f'{peak / 2**30:.2f}':>8}"
        )
    lines.append(f"{'scale':<9}" + "".join(f"{plan:>21}" for plan in entries))
    for rows in zip(*(entry["scales"] for entry in entries.values()), strict=True):
        lines.append(f"{rows[0]['scale']:<9}" + "".join(f"{_cell(row):>21}" for row in rows))
    return "\n".join(lines)


def _cell(scale: dict[str, Any]) -> str:
    """Milliseconds, share of the products' rate, launches."""
    if scale["skipped"]:
        return "skipped"
    share = scale.get("roofline", {}).get("product_share")
    parts = [
        f"{1e3 * scale['seconds']:.1f} ms",
        "" if share is None else f"{share:.0%}",
        str(scale["launches"]),
    ]
    return " ".join(part for part in parts if part)


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", default="2B", help="embedded, 125M, 1B, 2B, ...")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8], help="batch sizes")
    parser.add_argument("--plans", nargs="+", default=list(PLANS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9.0, help="what does not fit is left out")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-decode", action="store_true", help="leave out the VAE")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args(words)
    if arguments.plans[0] != "none":
        arguments.plans.insert(0, "none")
    return arguments


def main() -> None:
    """Measures, prints tables, writes JSON on request."""
    arguments = read_arguments()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; --device cpu --dims embedded runs anywhere.")
    keep_freed_memory()
    document = measure_all(arguments)
    if document["left_out"]:
        print(
            f"\nLeft out, since {arguments.minutes:g} minutes were spent: {', '.join(document['left_out'])}."
        )


if __name__ == "__main__":
    main()
