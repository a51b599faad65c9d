"""What choosing tokens costs: scores, selection and recovery as a share of a pruned scale's time.

StepVAR chooses once per scale, FastVAR before each of a layer's three branches.
Times one block of Infinity on all tokens and on the kept ones, behind a full cache, and multiplies by
the depth. Times are seconds of the processor on a CPU, so that other work on the machine does not count.

    python benchmarks/pruning_overhead.py                      # Infinity-2B's last scale at 1024 x 1024
    python benchmarks/pruning_overhead.py --device cuda --dtype bfloat16 --images 8
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from stepvar.allocator import keep_freed_memory
from stepvar.generation.cache import KVCache
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens, gather_tokens
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.interpolation import nearest_kept
from stepvar.pruning.scores import structure_scores, texture_scores
from stepvar.pruning.selection import keep_highest
from stepvar.pruning.stepvar import StepVAR

TEXT_TOKENS = 32


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="channels of the transformer")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--side", type=int, default=64, help="rows and columns of the pruned scale")
    parser.add_argument("--earlier", type=int, default=6425, help="tokens of the scales before it")
    parser.add_argument("--ratio", type=float, default=0.75, help="share of the tokens to prune")
    parser.add_argument("--images", type=int, default=1, help="pictures; each has two rows, as guidance has")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each part; the median counts")
    return parser.parse_args()


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a piece of work, after one run that does not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return statistics.median(times[1:])


class Block:
    """One layer of a model with random weights, and everything it needs to run alone."""

    def __init__(self, settings: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> None:
        with torch.device(device):
            self.model = InfinityTransformer(
                1, settings.width, settings.heads, bits=32, text_channels=64, text_length=1, pool_heads=1
            )
        self.model.eval().blocks.to(dtype)
        rows, width = 2 * settings.images, settings.width
        self.scale = Scale(0, settings.side, settings.side)
        self.grid = (settings.side, settings.side)
        capacity = settings.earlier + self.scale.tokens
        head_dim = width // settings.heads
        self.dtype = dtype
        self.cache = KVCache([capacity], rows, settings.heads, head_dim, dtype, device)
        self.earlier = settings.earlier
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        self.cache[0].keys.copy_(draw(*self.cache[0].keys.shape))
        self.cache[0].values.copy_(draw(*self.cache[0].values.shape))
        # Directions of falling strength, as the features of a trained model have them.
        strengths = torch.arange(1, width + 1, device=device).rsqrt()
        mixing = torch.linalg.qr(draw(width, width)).Q
        self.hidden = (draw(rows, self.scale.tokens, width) * strengths) @ mixing + draw(width)
        block = self.model.blocks[0]
        self.text = block.cross_attention.project(draw(rows, TEXT_TOKENS, width).to(dtype))
        self.modulation = block.modulations(draw(rows, 1, 6, width) * 0.1)
        self.constants = block.self_attention.constants()
        self.tokens = Tokens(self.scale, self.model.rotary(self.scale, self.grid))

    def run(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """The block's three branches, behind the cache of the earlier scales."""
        block, memory = self.model.blocks[0], self.cache[0]
        memory.length = self.earlier
        hidden = hidden + block.attend_self(
            hidden, tokens, self.modulation, memory, self.constants, self.dtype
        )
        hidden = hidden + block.attend_text(hidden, *self.text, None)
        return hidden + block.feed(hidden, self.modulation, self.dtype)


def fastvar_branch(work: Block, settings: argparse.Namespace, latent: Tensor) -> Callable[[], object]:
    """What FastVAR does around one residual branch: choose, gather, fill from the cache scale."""
    side = max(3 * settings.side // 8, 1)
    schedule = ScaleSchedule((Scale(0, 1, 1), Scale(1, side, side), Scale(2, settings.side, settings.side)))
    config = FastVAR(ratios={-1: settings.ratio})
    plan = config.plan(schedule, settings.depth)
    pruner = config.start(plan, latent.device)
    pruner.begin_scale(plan[2], settings.images, latent)
    cached = work.hidden[:, : side * side]

    def surround() -> Tensor:
        index = pruner.select(plan[2].first_layer, "self_attention", work.hidden)
        work.tokens.narrow(index)
        return work.hidden + pruner.filled(cached, index, gather_tokens(work.hidden, index))

    return surround


@torch.inference_mode()
def main() -> None:
    settings = parse()
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    work = Block(settings, device, dtype)
    config = StepVAR(ratios={-1: settings.ratio})
    schedule = ScaleSchedule((Scale(0, 1, 1), Scale(1, settings.side, settings.side)))
    entry = config.plan(schedule, settings.depth)[1]
    features, grid = work.hidden[: settings.images], work.scale.grid
    latent = torch.zeros(settings.images, 32, settings.side, settings.side, device=device)
    pruner = config.start(config.plan(schedule, settings.depth), device)
    pruner.begin_scale(entry, settings.images, latent)
    narrowed, kept = pruner.enter(entry.first_layer, work.tokens, work.hidden)
    scores = structure_scores(features, config.iterations, torch.Generator(device).manual_seed(0))
    rows = pruner.kept_index.repeat(2, 1)
    nearest = nearest_kept(pruner.kept_index, grid).repeat(2, 1)

    def timed(part: Callable[[], object]) -> float:
        return seconds(part, device, settings.repeats)

    generator = torch.Generator(device).manual_seed(0)
    parts = {
        "structure score": timed(lambda: structure_scores(features, config.iterations, generator)),
        "texture score": timed(lambda: texture_scores(features, grid, config.kernel)),
        "selection": timed(lambda: keep_highest(scores, entry.kept)),
        "gathering the kept": timed(lambda: (work.tokens.narrow(rows), gather_tokens(work.hidden, rows))),
        "nearest kept tokens": timed(lambda: nearest_kept(pruner.kept_index, grid)),
        "copying them": timed(lambda: gather_tokens(kept, nearest)),
    }
    together = timed(lambda: pruner.enter(entry.first_layer, work.tokens, work.hidden))
    together += timed(lambda: pruner.leave(narrowed, kept))
    around_branch = timed(fastvar_branch(work, settings, latent))
    dense_layer = timed(lambda: work.run(work.hidden, work.tokens))
    pruned_layer = timed(lambda: work.run(kept, narrowed))
    dense = settings.depth * dense_layer
    pruned = entry.first_layer * dense_layer + (settings.depth - entry.first_layer) * pruned_layer
    total = pruned + together
    print(f"{device}, {settings.dtype}, {settings.threads} thread(s), {settings.images} image(s) x 2 rows")
    print(f"width {settings.width}, {settings.depth} layers of which {entry.first_layer} dense,", end=" ")
    print(f"{entry.kept} of {work.scale.tokens} tokens kept after {settings.earlier} earlier ones")
    for name, time_taken in parts.items():
        print(f"  {name:22} {1000 * time_taken:10.2f} ms  {time_taken / total:8.3%}")
    print(f"  {'all, as StepVAR does':22} {1000 * together:10.2f} ms  {together / total:8.3%}")
    print(f"  {'FastVAR, each branch':22} {1000 * around_branch:10.2f} ms  (three times a layer)")
    print(f"  {'a layer, all tokens':22} {1000 * dense_layer:10.2f} ms")
    print(f"  {'a layer, kept tokens':22} {1000 * pruned_layer:10.2f} ms")
    print(f"the scale: dense {dense:.3f} s, pruned {total:.3f} s: {dense / total:.2f} x faster")
    print("shares are of the pruned scale's time")


if __name__ == "__main__":
    main()
