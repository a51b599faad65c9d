"""HART's published sizes, random weights: StepVAR and FastVAR against dense, dense against the official way.

    python benchmarks/hart.py                          # runs two layers, and adds up the others from them
    python benchmarks/hart.py --dtype float32
    python benchmarks/hart.py --layers 24 --device cuda --images 4
    python benchmarks/hart.py --tiny                   # seconds, to try the script

On a CPU the whole model takes long, and its layers are all alike. So a few are run, every part of every scale
is timed (a layer on all tokens, a layer on kept ones, choosing and recovering, everything outside the layers
with the diffusion head), and the published depth is added up from those parts, round by round. Text encoder
and pixel decoder are never part of it. Random weights cost what trained ones cost; what they draw is noise. A
GPU is waited for after every part, as a real run does not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plain_hart import PlainHART
from stepvar.allocator import keep_freed_memory
from stepvar.generation.loop import generate, plan_generation
from stepvar.generation.plan import GenerationPlan, ScalePlan
from stepvar.generation.pruner import NestedPruner, Pruner, PruningMethod
from stepvar.generation.sampling import CodebookSampler
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.metrics.timing import Samples, Spread, interleaved, machine
from stepvar.models.common.vector_quantizer import VectorQuantizer
from stepvar.models.hart.costs import scale_costs
from stepvar.models.hart.presets import PRESETS
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import scale_schedule
from stepvar.models.hart.text import ContextFeatures
from stepvar.models.hart.transformer import HARTTransformer

PUBLISHED_LAYERS = 24
LATE = 2
"""Scales that the presets prune."""

NOTHING = 1e-4
"""Seconds that stand for a part that a contestant has not: two marks in a row."""

TINY = {
    "width": 64,
    "heads": 2,
    "codebook_size": 64,
    "context_tokens": 12,
    "context_channels": 32,
    "sides": (1, 2, 3, 4, 6, 8),
    "diffusion_width": 32,
    "diffusion_depth": 1,
}

OFFICIAL, DENSE = "official arithmetic", "dense"
METHODS = {"StepVAR": "paper", "FastVAR": "fastvar"}
"""Presets by what the table calls them."""


@dataclass
class Clock:
    """Seconds of every part of every scale of one run: "outside", "choosing", "layer 0", "layer 1", ..."""

    device: torch.device
    parts: dict[tuple[int, str], float] = field(default_factory=lambda: defaultdict(float))
    last: float = 0.0

    def start(self) -> Clock:
        self.last = self._now()
        return self

    def mark(self, name: str, scale: Scale) -> None:
        """What was done since the last mark belongs to a part; landmarks that are no part are outside."""
        part = name if name == "choosing" or name.startswith("layer") else "outside"
        now = self._now()
        self.parts[scale.index, part] += now - self.last
        self.last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class ClockedPruner(NestedPruner):
    """A method whose choosing and recovering are told apart from the layers."""

    def __init__(self, plan: GenerationPlan, inner: Pruner, clock: Clock) -> None:
        super().__init__(plan, inner)
        self.clock = clock

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        result = super().enter(layer, tokens, hidden)
        self.clock.mark("choosing", tokens.scale)
        return result

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        result = super().leave(tokens, hidden)
        self.clock.mark("choosing", tokens.scale)
        return result


@dataclass(frozen=True)
class Clocked:
    """A pruning method with a `ClockedPruner` around its own."""

    method: PruningMethod
    clock: Clock

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        return self.method.plan(schedule, depth)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return ClockedPruner(plan, self.method.start(plan, device), self.clock)


Run = tuple[Tensor, Clock]


class Contest:
    """One batch of pictures that every contestant draws.

    Args:
        transformer: The weights, on their device and in their number format.
        images: Pictures in the batch.
        guidance_scale: 1 draws without guidance.
    """

    def __init__(self, transformer: HARTTransformer, images: int = 1, guidance_scale: float = 5.5) -> None:
        self.transformer, self.images = transformer, images
        config, self.device = transformer.config, transformer.device
        self.schedule = scale_schedule([(side, side) for side in config.sides])
        self.guidance = make_guidance(guidance_scale, self.schedule)
        generator = torch.Generator().manual_seed(1)
        shape = (images, config.context_tokens, config.context_channels)
        mask = torch.arange(shape[1]).expand(images, -1) < max(shape[1] // 8, 1)
        condition = ContextFeatures.from_mask(torch.randn(shape, generator=generator), mask)
        if self.guidance.active:
            condition = condition.joined(ContextFeatures.empty(*shape, condition.features.device))
        self.condition = condition.to(self.device)
        self.quantizer = VectorQuantizer(config.codebook_size, config.latent_channels)
        self.quantizer.to(self.device).requires_grad_(False)

    def sampler(self) -> CodebookSampler:
        """The same random numbers for every run."""
        settings = make_sampling(self.schedule, 1.0, None, 0.0, smooth=True)
        codebook = self.quantizer.codebook.weight
        return CodebookSampler(settings, self.schedule, codebook, self._generators(), self.device)

    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(self.images)]

    def residual(self) -> ResidualDraw:
        model, tokens = self.transformer, self.schedule.final.tokens
        channels, steps = model.config.latent_channels, len(model.residual_head.schedule)
        noise = draw_residual_noise(self._generators(), tokens, channels, steps, self.device)
        return ResidualDraw(noise, self.guidance.weights[-1] - 1.0)

    def ours(self, pruning: PruningMethod | None = None) -> Callable[[], Run]:
        """A run of our own loop."""

        @torch.no_grad()
        def run() -> Run:
            model, schedule = self.transformer, self.schedule
            parts = (self.quantizer, self.condition, self.images, schedule, self.residual())
            sampler, clock = self.sampler(), Clock(self.device).start()
            session = HARTSession(model, *parts)
            result = generate(
                session,
                guidance=self.guidance,
                sampler=sampler,
                pruning=None if pruning is None else Clocked(pruning, clock),
                probe=lambda name, scale, value: clock.mark(name, scale),
            )
            return result.latent, clock

        return run

    def plain(self) -> Run:
        """A run of the official arithmetic."""
        runner = PlainHART(self.transformer, self.quantizer)
        drawing = (self.guidance, self.sampler(), self.residual())
        inputs = (self.condition, self.images, self.schedule, *drawing)
        clock = Clock(self.device).start()
        return runner.generate(*inputs, observer=clock.mark).latent, clock

    def rows(self) -> list[int]:
        copies = 2 if self.guidance.active else 1
        return [self.guidance.row_count(scale.index, self.images, copies) for scale in self.schedule]


def scale_seconds(clock: Clock, measured: ScalePlan, wanted: ScalePlan, layers: int, depth: int) -> float:
    """Seconds of a scale with `depth` layers, from a run with `layers` of them."""
    index, total = measured.scale.index, measured.scale.tokens
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for layer in range(layers):
        kinds[measured.tokens(layer) == total].append(clock.parts[index, f"layer {layer}"])
    means = {kind: sum(seconds) / len(seconds) for kind, seconds in kinds.items() if seconds}
    inside = sum(means[wanted.tokens(layer) == total] for layer in range(depth))
    return clock.parts[index, "outside"] + clock.parts[index, "choosing"] + inside


class Measured:
    """What a contestant took: all figures in seconds, of every round.

    Args:
        contest: What was drawn.
        method: Its pruning; None for none.
        clocks: One a round.
        depth: Layers of the whole model.
    """

    def __init__(
        self, contest: Contest, method: PruningMethod | None, clocks: list[Clock], depth: int
    ) -> None:
        layers, schedule = len(contest.transformer.blocks), contest.schedule
        self.clocks, self.layers = clocks, layers
        self.plan, self.whole = (plan_generation(method, schedule, count) for count in (layers, depth))
        self.late = [self._sum(clock, LATE, depth) for clock in clocks]
        self.all = [self._sum(clock, len(schedule), depth) for clock in clocks]
        self.run = [sum(clock.parts.values()) for clock in clocks]

    def _sum(self, clock: Clock, scales: int, depth: int) -> float:
        pairs = zip(self.plan.scales[-scales:], self.whole.scales[-scales:], strict=True)
        return sum(scale_seconds(clock, *pair, self.layers, depth) for pair in pairs)

    def part(self, name: str) -> list[float]:
        """Seconds of a part at the last scale: "all" or "kept" for a layer on so many tokens."""
        last = self.plan.scales[-1]
        if name not in ("all", "kept"):
            return [clock.parts[last.scale.index, name] for clock in self.clocks]
        wanted = (last.tokens(layer) == last.scale.tokens for layer in range(self.layers))
        layers = [layer for layer, full in enumerate(wanted) if full == (name == "all")]
        if not layers:
            return []
        return [
            sum(clock.parts[last.scale.index, f"layer {layer}"] for layer in layers) / len(layers)
            for clock in self.clocks
        ]

    def as_json(self) -> dict[str, Any]:
        names = ("all", "kept", "choosing", "outside")
        parts = {name: self.part(name) for name in names}
        figures = {"run": self.run, "late scales": self.late, "picture": self.all, **parts}
        return {name: Spread.of(values).as_json() for name, values in figures.items() if values}


def measure(contest: Contest, repeats: int, depth: int = PUBLISHED_LAYERS) -> dict[str, Any]:
    """All contestants in turn: seconds, what FLOPs promise, and how many accumulated codes agree."""
    methods: dict[str, PruningMethod | None] = {
        name: PRESETS[preset].method for name, preset in METHODS.items()
    }
    methods = {OFFICIAL: None, DENSE: None, **methods}
    runs: dict[str, Callable[[], Run]] = {name: contest.ours(method) for name, method in methods.items()}
    runs[OFFICIAL] = contest.plain
    samples: dict[str, Samples[Run]] = interleaved(runs, repeats, contest.device)
    told = {}
    for name, sample in samples.items():
        taken = Measured(contest, methods[name], [clock for _, clock in sample.results], depth)
        costs = scale_costs(contest.transformer, taken.whole, contest.rows(), contest.images)
        told[name] = {**taken.as_json(), "flops": [cost.flops for cost in costs]}
    official, dense = (samples[name].results[-1][0] for name in (OFFICIAL, DENSE))
    equal = float(torch.isclose(official, dense, atol=1e-3).float().mean())
    return {"contestants": told, "equal_codes": equal}


def table(told: Mapping[str, Any], layers: int, depth: int) -> str:
    """The figures for people, ready for a page of documentation."""
    contestants = told["contestants"]
    lines = ["| | " + " | ".join(contestants) + " |", "|---" * (len(contestants) + 1) + "|"]

    def row(label: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        lines.append(f"| {label} | " + " | ".join(cell(entry) for entry in contestants.values()) + " |")

    def seconds(name: str) -> Callable[[Mapping[str, Any]], str]:
        def cell(entry: Mapping[str, Any]) -> str:
            taken = entry[name]["median"] if name in entry else 0.0
            return f"{taken:.3g} s" if taken > NOTHING else ""

        return cell

    def against(name: str, scales: slice, rival: str) -> Callable[[Mapping[str, Any]], str]:
        base = contestants[rival]

        def cell(entry: Mapping[str, Any]) -> str:
            ratio = base[name]["median"] / entry[name]["median"]
            promised = sum(base["flops"][scales]) / sum(entry["flops"][scales])
            return f"{ratio:.2f} x" + (f" ({promised:.2f})" if promised != 1.0 else "")

        return cell

    row("last scale: a layer on all tokens", seconds("all"))
    row("a layer on kept tokens", seconds("kept"))
    row("choosing and recovering, unless a layer does it", seconds("choosing"))
    row("outside the layers, with the diffusion head", seconds("outside"))
    row(f"one run with {layers} layers", seconds("run"))
    row(f"last two scales, {depth} layers", seconds("late scales"))
    row("against dense (promised by FLOPs)", against("late scales", slice(-LATE, None), DENSE))
    row(f"whole picture, {depth} layers", seconds("picture"))
    row("against dense (promised by FLOPs)", against("picture", slice(None), DENSE))
    row("against official arithmetic", against("picture", slice(None), OFFICIAL))
    return "\n".join(lines)


def build(layers: int, tiny: bool) -> HARTTransformer:
    """The published sizes with random weights and so many layers, or a toy."""
    torch.manual_seed(0)
    transformer = HARTTransformer.published(depth=layers, **(TINY if tiny else {}))
    return transformer.eval().requires_grad_(False)


def cast(transformer: HARTTransformer, dtype: torch.dtype) -> HARTTransformer:
    """Casts all modules but those that stay in float32, as loading in a number format does."""
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2, help="layers that are run, 2 or more")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--images", type=int, default=1, help="pictures in the batch")
    parser.add_argument("--guidance", type=float, default=5.5, help="1 is off")
    parser.add_argument("--repeats", type=int, default=2, help="rounds; one more warms up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    return parser.parse_args()


def main() -> None:
    """Measures, prints a table, writes JSON on request."""
    arguments = read_arguments()
    keep_freed_memory()
    if arguments.layers < 2:
        raise SystemExit("--layers must be 2 or more: StepVAR leaves the first layer dense.")
    transformer = build(arguments.layers, arguments.tiny)
    cast(transformer, getattr(torch, arguments.dtype)).to(arguments.device)
    contest, started = Contest(transformer, arguments.images, arguments.guidance), time.perf_counter()
    told = measure(contest, arguments.repeats)
    about = machine(contest.device)
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    print(
        f"{about['device_name']}, {about['threads']} threads, torch {about['torch']}, {arguments.dtype}, "
        f"{arguments.images} picture(s), guidance {arguments.guidance:g}, medians of {arguments.repeats} "
        f"rounds, {time.perf_counter() - started:.0f} s in all\n"
    )
    print(table(told, arguments.layers, PUBLISHED_LAYERS))
    print(
        f"\nOfficial arithmetic and dense agree on {told['equal_codes']:.1%} of the accumulated codes", end=""
    )
    print("." if arguments.dtype == "float32" else " (rounding moves draws; compare in float32).")
    if arguments.json:
        document = {"settings": settings, "machine": about, **told}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
