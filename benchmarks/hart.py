"""HART's real dimensions, random weights: pruned against dense, and dense against the official arithmetic.

    python benchmarks/hart.py                          # two layers, the last two scales behind a full cache
    python benchmarks/hart.py --layers 24 --whole --device cuda --dtype bfloat16 --images 4
    python benchmarks/hart.py --tiny                   # seconds, to try the script

By default the early scales run outside the measured time, and only the last two are timed: on a CPU the whole
model takes minutes. `--whole` times everything. Text encoder and decoder are never part of it. Random weights
cost what trained ones cost; what they draw is noise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from plain_hart import PlainHART
from stepvar.evaluation.timing import Samples, Spread, interleaved, machine
from stepvar.generation.loop import generate
from stepvar.generation.sampling import CodebookSampler
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import scale_schedule
from stepvar.models.hart.text import ContextFeatures
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.vector_quantizer import VectorQuantizer
from stepvar.presets import PRESETS
from stepvar.pruning.base import PruningMethod

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


class Contest:
    """One batch of pictures that every contestant draws.

    Args:
        transformer: The weights, on their device and in their number format.
        images: Pictures in the batch.
        late: How many scales at the end are timed; 0 times all of them.
        guidance_scale: 0 draws without guidance.
    """

    def __init__(
        self, transformer: HARTTransformer, images: int = 1, late: int = 0, guidance_scale: float = 4.5
    ) -> None:
        self.transformer, self.images, self.late = transformer, images, late
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

    def residual(self, everywhere: bool = True) -> ResidualDraw:
        config, head = self.transformer.config, self.transformer.residual_head
        noise = draw_residual_noise(
            self._generators(),
            self.schedule.final.tokens,
            config.latent_channels,
            len(head.schedule),
            self.device,
        )
        return ResidualDraw(noise, self.guidance.weights[-1] - 1.0, everywhere)

    def ours(self, pruning: PruningMethod | None = None, everywhere: bool = True) -> Callable[[], Any]:
        """A run of our own loop: returns the latent and, with late scales only, their seconds."""

        def run() -> tuple[torch.Tensor, float]:
            session = HARTSession(
                self.transformer,
                self.quantizer,
                self.condition,
                self.images,
                self.schedule,
                self.residual(everywhere),
            )
            with torch.no_grad():
                result = generate(session, guidance=self.guidance, sampler=self.sampler(), pruning=pruning)
            return result.latent, sum(report.seconds for report in result.scales[-self.late :])

        return run

    def plain(self) -> tuple[torch.Tensor, float]:
        runner, marks = PlainHART(self.transformer, self.quantizer), [time.perf_counter()]

        def mark(_scale: object) -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            marks.append(time.perf_counter())

        latent = runner.generate(
            self.condition,
            self.images,
            self.schedule,
            self.guidance,
            self.sampler(),
            self.residual(),
            observer=mark,
        ).latent
        return latent, marks[-1] - marks[-1 - (self.late or len(self.schedule))]


def build(layers: int, tiny: bool) -> HARTTransformer:
    """The published sizes with random weights and so many layers, or a toy."""
    torch.manual_seed(0)
    transformer = HARTTransformer.published(depth=layers, **(TINY if tiny else {}))
    return transformer.eval().requires_grad_(False)


def measure(contest: Contest, repeats: int, presets: list[str]) -> dict[str, Any]:
    """Medians of all contestants in turn, in seconds, and how many accumulated codes agree."""
    plans = PRESETS["HARTPipeline"]
    contestants: dict[str, Callable[[], Any]] = {
        "official arithmetic": contest.plain,
        "dense": contest.ours(),
    }
    for name in presets:
        contestants[name] = contest.ours(plans[name])
    if "paper" in presets:
        contestants["paper, residuals of kept tokens"] = contest.ours(plans["paper"], everywhere=False)
    samples: dict[str, Samples[Any]] = interleaved(contestants, repeats, contest.device)
    told: dict[str, Any] = {}
    for name, sample in samples.items():
        seconds = [late for _, late in sample.results] if contest.late else sample.seconds
        told[name] = Spread.of(seconds).as_json()
    plain, dense = (samples[name].results[-1][0] for name in ("official arithmetic", "dense"))
    told["equal_codes"] = float(torch.isclose(plain, dense, atol=1e-3).float().mean())
    return told


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2, help="layers of the transformer; published are 24")
    parser.add_argument("--whole", action="store_true", help="time all scales")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--images", type=int, default=1, help="pictures in the batch")
    parser.add_argument("--guidance", type=float, default=4.5, help="0 is off")
    parser.add_argument("--presets", nargs="*", default=["paper", "fastvar"], help="pruning to measure")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    return parser.parse_args()


def cast(transformer: HARTTransformer, dtype: torch.dtype) -> HARTTransformer:
    """Casts all modules but those that stay in float32, as loading in a number format does."""
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def main() -> None:
    """Measures, prints a table, writes JSON on request."""
    arguments = read_arguments()
    transformer = build(arguments.layers, arguments.tiny)
    cast(transformer, getattr(torch, arguments.dtype)).to(arguments.device)
    contest = Contest(transformer, arguments.images, 0 if arguments.whole else 2, arguments.guidance)
    told = measure(contest, arguments.repeats, arguments.presets)
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    document = {"settings": settings, "seconds": told, "machine": machine(contest.device)}
    what = "all scales" if arguments.whole else "the last two scales"
    print(f"{what}, {arguments.layers} layers, {arguments.images} pictures, {arguments.dtype}")
    dense = told["dense"]["median"]
    for name, spread in told.items():
        if name != "equal_codes":
            print(f"{name:<34}{spread['median']:>9.3f} s {dense / spread['median']:>7.2f} x dense")
    print(f"official arithmetic and dense agree on {told['equal_codes']:.1%} of the accumulated codes")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
