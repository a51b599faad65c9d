"""FasterVAR: ours against a plain implementation of its authors' arithmetic, and both against our plans.

    python benchmarks/fastervar.py                       # the embedded model's dimensions
    python benchmarks/fastervar.py --dims 125M           # Infinity-125M's at one megapixel
    python benchmarks/fastervar.py --dims 2B --dtype bfloat16 --device cuda
    python benchmarks/fastervar.py --dims 2B --count     # what each plan saves, in operations; runs nothing

Random weights, one picture, all in turn in one process, medians. Times are of the transformer alone: text
side, scales, sampling; neither text encoder nor decoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dense import DTYPES, Contest, build, cast, cut_schedule
from plain_fastervar import PlainFasterVAR, PlainSettings
from stepvar.allocator import keep_freed_memory
from stepvar.generation.guidance import CONDITIONAL, UNCONDITIONAL, Guidance
from stepvar.generation.loop import generate
from stepvar.generation.pruner import PruningMethod, plan_generation
from stepvar.metrics.timing import Samples, Spread, interleaved, machine
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.published import published_config
from stepvar.models.infinity.session import InfinitySession
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.fastervar import FasterVAR, averaged
from stepvar.pruning.fastervar_shares import INFINITY_SHARES
from stepvar.pruning.presets import with_scales
from stepvar.pruning.stepvar import StepVAR

SKIPPED = (-2, -1)
PLANS: dict[str, PruningMethod | None] = {
    "dense": None,
    "FasterVAR": FasterVAR.published(),
    "FasterVAR, with the prompt": replace(FasterVAR.published(), remaining=CONDITIONAL),
    "its skips, no prompt": StepVAR(skip=SKIPPED, unguided=-3, remaining=UNCONDITIONAL),
    "its skips, no guidance": StepVAR(skip=SKIPPED, unguided=-3),
    "one more skip": StepVAR(skip=(-3, *SKIPPED)),
    "FastVAR": with_scales("fastvar", {-4: 0.4, -3: 0.5}, SKIPPED),
    "paper": PRESETS["paper"].method,
    "no guidance on four": StepVAR(skip=SKIPPED, unguided=-4),
    "no guidance on five": StepVAR(skip=SKIPPED, unguided=-5),
    "five, and half of one pruned": StepVAR(
        {-3: 0.5}, SKIPPED, unguided=-5, recovery="guided", values="expected"
    ),
    "the same, filled from a scale": StepVAR(
        {-3: 0.5}, SKIPPED, unguided=-5, recovery="cache", values="expected"
    ),
}
"""What is timed besides the authors' arithmetic, by name."""

DENSE, THEIRS = "plain dense", "plain FasterVAR"
"""The official arithmetic, without and with its authors' method."""


class Rivals(Contest):
    """One picture that every contestant draws."""

    def plan(self, method: PruningMethod | None) -> torch.Tensor:
        """Our loop under a plan; returns the accumulated codes."""
        with torch.no_grad():
            session = InfinitySession(self.transformer, self.condition, self.schedule)
            run = generate(session, guidance=self.guidance, sampler=self.sampler(), pruning=method)
        return run.latent

    def theirs(self) -> torch.Tensor:
        """The authors' arithmetic; returns the accumulated codes."""
        count, depth = len(self.schedule), len(self.transformer.blocks)
        groups = depth // FasterVAR().group_layers(depth)
        shares = averaged(INFINITY_SHARES["0.96"], groups)
        settings = PlainSettings(shares, count - 3, count - 3, (count - 2, count - 1))
        runner = PlainFasterVAR(self.transformer)
        return runner.accelerated(self.condition, self.schedule, self.guidance, self.sampler(), settings)

    def contestants(self, names: list[str] | None = None) -> dict[str, Callable[[], torch.Tensor]]:
        """What is timed, by name; all of it, or what is named."""
        everyone = {DENSE: self.plain, THEIRS: self.theirs}
        everyone |= {name: partial(self.plan, method) for name, method in PLANS.items()}
        return {name: run for name, run in everyone.items() if names is None or name in names}


def measure(contest: Rivals, repeats: int, names: list[str] | None = None) -> dict[str, Any]:
    """Medians of all in turn, and how many accumulated codes of both FasterVARs agree."""
    samples: dict[str, Samples[torch.Tensor]] = interleaved(
        contest.contestants(names), repeats, contest.device
    )
    found: dict[str, Any] = {name: Spread.of(entry.seconds).as_json() for name, entry in samples.items()}
    if {THEIRS, "FasterVAR"} <= samples.keys():
        latents = [samples[name].results[-1] for name in (THEIRS, "FasterVAR")]
        found["equal_codes"] = float(torch.isclose(*latents, atol=1e-3).float().mean())
    return found


def savings(dims: str, text_tokens: int) -> dict[str, tuple[float, float]]:
    """How many times fewer operations, and tokens through the layers, each plan has than the dense run."""
    with torch.device("meta"):
        transformer = InfinityTransformer(**published_config(dims))
    schedule, depth = cut_schedule(transformer, None), len(transformer.blocks)

    def work(method: PruningMethod | None) -> tuple[int, int]:
        plan = plan_generation(method, schedule, depth)
        until = () if plan.unguided is None else (plan.unguided,)
        guidance = Guidance((3.0,) * len(schedule), until=until, remaining=plan.remaining)
        rows = [guidance.row_count(scale.index, 1, 2) for scale in schedule]
        tokens = [sum(entry.tokens(layer) for layer in range(depth)) for entry in plan.scales]
        flops = sum(cost.flops for cost in scale_costs(transformer, plan, rows, text_tokens))
        return flops, sum(count * run for count, run in zip(rows, tokens, strict=True))

    dense = work(None)
    counted = {name: work(method) for name, method in PLANS.items()}
    return {name: (dense[0] / flops, dense[1] / tokens) for name, (flops, tokens) in counted.items()}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", default="embedded", help="embedded, 125M, 1B, 2B, ...")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--layers", type=int, help="build only so many layers")
    parser.add_argument("--text-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", action="store_true", help="count operations of a published size")
    parser.add_argument("--only", action="append", help="a contestant's name; default: all")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    arguments = parser.parse_args()
    known = [DENSE, THEIRS, *PLANS]
    if unknown := sorted(set(arguments.only or ()) - set(known)):
        parser.error(f"unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return arguments


def main() -> None:
    """Measures, prints a table, writes JSON on request."""
    arguments = read_arguments()
    if arguments.count:
        for name, (flops, tokens) in savings(arguments.dims, arguments.text_tokens).items():
            print(f"{name:<30}{flops:>8.2f}x FLOPs{tokens:>8.2f}x tokens")
        return
    keep_freed_memory()
    transformer = build(arguments.dims, arguments.layers)
    cast(transformer, getattr(torch, arguments.dtype)).to(arguments.device)
    contest = Rivals(transformer, cut_schedule(transformer, None), text_tokens=arguments.text_tokens)
    found = measure(contest, arguments.repeats, arguments.only)
    print(f"{arguments.dims} dimensions, {arguments.dtype}, {contest.schedule.tokens:,} tokens")
    times = {name: entry["median"] for name, entry in found.items() if name != "equal_codes"}
    slowest = times.get(DENSE) or max(times.values())
    for name, seconds in times.items():
        print(f"{name:<30}{seconds:>9.3f}s{slowest / seconds:>9.2f}x")
    if "equal_codes" in found:
        print(f"codes of both FasterVARs that agree: {found['equal_codes']:.1%}")
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        document = {"settings": settings, "machine": machine(contest.device), **found}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
