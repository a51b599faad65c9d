"""Our dense run against a plain implementation of the official arithmetic, in turn, on the same weights.

    python benchmarks/dense.py                           # the embedded model's dimensions
    python benchmarks/dense.py --dims 125M --scales 9    # Infinity-125M's, without the last four scales
    python benchmarks/dense.py --dims 2B --dtype bfloat16 --device cuda --images 8

Times are of the transformer alone: text side, all scales, sampling; neither text encoder nor decoder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from plain_infinity import PlainInfinity
from stepvar.allocator import keep_freed_memory
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.metrics.timing import Samples, Spread, interleaved, machine
from stepvar.models.infinity.published import published_config
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.models.infinity.training import init_weights
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.training.pictures.sizes import SIZES, build_transformer

DTYPES = ("float32", "bfloat16")


def build(dims: str, layers: int | None) -> InfinityTransformer:
    """A transformer with random weights: "embedded" or a published size, with fewer layers on request."""
    torch.manual_seed(0)
    if dims == "embedded":
        transformer = build_transformer(SIZES["256"])
    else:
        config = published_config(dims)
        transformer = InfinityTransformer(**{**config, "depth": layers or config["depth"]})
    if dims == "embedded" and layers:
        del transformer.blocks[layers:]
    init_weights(transformer)
    return transformer.eval().requires_grad_(False)


def cut_schedule(transformer: InfinityTransformer, scales: int | None) -> ScaleSchedule:
    """The square schedule at the largest budget, or its first scales."""
    table = transformer.size_table
    whole = table.at_aspect(1.0, list(table.budgets)[-1])
    return ScaleSchedule(tuple(whole)[: scales or len(whole)], whole.position_grid)


class Contest:
    """One batch of pictures that both implementations draw.

    Args:
        transformer: The weights, on their device and in their number format.
        schedule: The scales.
        images: Pictures in the batch.
        text_tokens: Length of every prompt in tokens.
        guidance_scale: 1 draws without guidance.
    """

    def __init__(
        self,
        transformer: InfinityTransformer,
        schedule: ScaleSchedule,
        images: int = 1,
        text_tokens: int = 16,
        guidance_scale: float = 3.0,
    ) -> None:
        self.transformer, self.schedule, self.images = transformer, schedule, images
        self.device = transformer.level_embedding.weight.device
        scales = len(schedule)
        self.guidance = Guidance((guidance_scale,) * scales)
        self.settings = SamplingSettings((0.5,) * scales, top_p=0.97)
        generator = torch.Generator().manual_seed(1)
        channels = transformer.config.text_channels
        texts = [torch.randn(text_tokens, channels, generator=generator) for _ in range(images)]
        positive = tuple(text.to(self.device) for text in texts)
        negative = (transformer.unconditional_text[:text_tokens],) * images if self.guidance.active else ()
        self.condition = TextCondition(positive, negative)

    def sampler(self) -> BitSampler:
        """The same random numbers for every run."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(self.images)]
        bits = self.transformer.config.bits
        return BitSampler(self.settings, self.schedule, bits, generators, self.device)

    @torch.no_grad()
    def ours(self) -> torch.Tensor:
        session = InfinitySession(self.transformer, self.condition, self.schedule)
        return generate(session, guidance=self.guidance, sampler=self.sampler()).latent

    def plain(self) -> torch.Tensor:
        runner = PlainInfinity(self.transformer)
        return runner.generate(self.condition, self.schedule, self.guidance, self.sampler()).latent


def measure(contest: Contest, repeats: int) -> dict[str, Any]:
    """Medians of both in turn, and how many of the accumulated codes agree."""
    samples: dict[str, Samples[torch.Tensor]] = interleaved(
        {"plain": contest.plain, "ours": contest.ours}, repeats, contest.device
    )
    latents = [samples[name].results[-1] for name in ("plain", "ours")]
    same = float(torch.isclose(*latents, atol=1e-3).float().mean())
    return {
        "plain": Spread.of(samples["plain"].seconds).as_json(),
        "ours": Spread.of(samples["ours"].seconds).as_json(),
        "speedup": samples["plain"].median / samples["ours"].median,
        "equal_codes": same,
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", default="embedded", help="embedded, 125M, 1B, 2B, ...")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: both, one after the other")
    parser.add_argument("--scales", type=int, help="run only the first so many scales")
    parser.add_argument("--layers", type=int, help="build only so many layers")
    parser.add_argument("--images", type=int, default=1, help="pictures in the batch")
    parser.add_argument("--text-tokens", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    return parser.parse_args()


def main() -> None:
    """Measures, prints a table, writes JSON on request."""
    arguments = read_arguments()
    keep_freed_memory()
    results: dict[str, Any] = {}
    for dtype in arguments.dtype or DTYPES:
        transformer = build(arguments.dims, arguments.layers)
        schedule = cut_schedule(transformer, arguments.scales)
        cast(transformer, getattr(torch, dtype)).to(arguments.device)
        contest = Contest(transformer, schedule, arguments.images, arguments.text_tokens, arguments.guidance)
        results[dtype] = measure(contest, arguments.repeats)
        results["machine"] = machine(contest.device)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "dtype")}
    document = {"settings": {**settings, "tokens": schedule.tokens}, **results}
    print(f"{arguments.dims} dimensions, {schedule.tokens:,} tokens, {len(transformer.blocks)} layers")
    print(f"{'format':<10}{'plain':>10}{'ours':>10}{'speed-up':>10}{'equal codes':>13}")
    for dtype in arguments.dtype or DTYPES:
        entry = results[dtype]
        plain, ours = entry["plain"]["median"], entry["ours"]["median"]
        print(f"{dtype:<10}{plain:>9.3f}s{ours:>9.3f}s{entry['speedup']:>9.2f}x{entry['equal_codes']:>13.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def cast(transformer: InfinityTransformer, dtype: torch.dtype) -> InfinityTransformer:
    """Casts all modules but those that stay in float32, as loading in a number format does."""
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


if __name__ == "__main__":
    main()
