"""The late steps of InfinityStar 8B with random weights: dense against pruned, time, memory, roofline.

A few layers at the real width tell the time of all of them; so one step fits a machine that the whole model
does not. On a GPU with room for it, --layers 36 runs the whole depth.

    python benchmarks/infinitystar.py --layers 2 --steps 1                  # CPU: one late step
    python benchmarks/infinitystar.py --layers 36 --steps 6 --device cuda --dtype bfloat16
    python benchmarks/infinitystar.py --tiny                                # try the script itself
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from stepvar.allocator import keep_freed_memory
from stepvar.generation.guidance import Guidance, ProjectedGuidance
from stepvar.generation.loop import generate, plan_generation
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.models.infinitystar.costs import memory_plan, scale_costs
from stepvar.models.infinitystar.schedules import VideoSchedule
from stepvar.models.infinitystar.session import InfinityStarSession, KnownClips, TextPrefix
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.pruning.stepvar import StepVAR

TINY = {"width": 64, "heads": 4, "key_heads": 2, "hidden_width": 128, "text_channels": 32}


def late_steps(resolution: str, steps: int, grids: int | None) -> VideoSchedule:
    """The known picture, and the last steps of a 5 second clip."""
    sizes = VideoSizes.published(resolution)
    schedule = sizes.schedule(0.562, sizes.latents(5)).without_known(1)
    kept = [schedule[0], *list(schedule)[-steps:]]
    if grids is not None:
        kept = [replace(scale, height=grids, width=grids) for scale in kept]
        schedule = replace(schedule, position_grid=(grids, grids))
    return replace(schedule, scales=tuple(replace(scale, index=place) for place, scale in enumerate(kept)))


def build(options: argparse.Namespace) -> InfinityStarTransformer:
    """Random weights, drawn on the device layer by layer."""
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    config = {"depth": options.layers, "block_chunks": 1, **(TINY if options.tiny else {})}
    with torch.device("meta"):
        model = InfinityStarTransformer.published(options.resolution, **config)
    exact = set(model._keep_in_fp32_modules)
    for name, value in list(model.named_parameters()):
        kind = torch.float32 if exact & set(name.split(".")) else dtype
        drawn = torch.randn(value.shape, device=device, dtype=kind)
        drawn *= 0.02 if value.dim() == 2 else 0.1
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(drawn, requires_grad=False))
    return model.eval()


def run(model: InfinityStarTransformer, schedule: VideoSchedule, pruning: StepVAR | None, text: int) -> dict:
    """Seconds of every step, the cache, and the peak."""
    device = model.device
    grid = (1, *schedule.position_grid)
    picture = torch.zeros(1, model.config.detail_bits, *grid, device=device)
    features = torch.randn(2, text, model.config.text_channels, device=device)
    session = InfinityStarSession(
        model, TextPrefix(*features), schedule, KnownClips((picture,), (picture,)), device=device
    )
    # The steps' input is what is drawn so far: noise does for timing.
    settings = SamplingSettings((0.4,) * len(schedule))
    bits = [scale.bits for scale in schedule]
    sampler = BitSampler(settings, schedule, bits, [torch.Generator().manual_seed(0)], device)
    guidance: Guidance = ProjectedGuidance((34.0,) * len(schedule), threshold=0.05)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        result = generate(session, guidance=guidance, sampler=sampler, pruning=pruning)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {
        "seconds": time.perf_counter() - start,
        "steps": {
            f"{place}: {report.plan.scale}": report.seconds for place, report in enumerate(result.scales)
        },
        "cache_bytes": result.cache_bytes,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", default="480p", choices=("480p", "720p"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="Last steps of the clip to run.")
    parser.add_argument("--ratio", type=float, default=0.5, help="Share of the tokens pruned on them.")
    parser.add_argument("--text", type=int, default=128, help="Tokens of the prompt.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--peak-tflops", type=float, help="Of the device, for the roofline share.")
    parser.add_argument("--tiny", action="store_true", help="Small widths and maps: tries the script itself.")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model = build(options)
    schedule = late_steps(options.resolution, options.steps, 6 if options.tiny else None)
    first_layer = max(round(3 / 32 * options.layers), 1) if options.layers > 1 else 0
    pruned = StepVAR(
        ratios={-step: options.ratio for step in range(1, options.steps + 1)}, first_layer=first_layer
    )
    document: dict = {"options": vars(options), "torch": torch.__version__, "methods": {}}
    methods = {"dense": None, "pruned": pruned}
    rounds = {name: [] for name in methods}
    for number in range(options.rounds + 1):
        for name, method in methods.items():
            measured = run(model, schedule, method, options.text)
            if number:
                rounds[name].append(measured)
    for name, method in methods.items():
        plan = plan_generation(method, schedule, options.layers)
        costs = scale_costs(model, schedule, plan, [2] * len(schedule), [options.text])
        flops = sum(cost.flops for cost in costs)
        median = statistics.median(entry["seconds"] for entry in rounds[name])
        document["methods"][name] = {
            **rounds[name][-1],
            "seconds": median,
            "flops": flops,
            "tflops_per_second": flops / median / 1e12,
            "roofline_share": flops / median / 1e12 / options.peak_tflops if options.peak_tflops else None,
        }
    dense, fast = (document["methods"][name] for name in ("dense", "pruned"))
    document["speedup"] = dense["seconds"] / fast["seconds"]
    document["flops_ratio"] = dense["flops"] / fast["flops"]
    with torch.device("meta"):
        tokenizer = InfinityStarVAE()
    plan = plan_generation(None, schedule, options.layers)
    document["memory_plan"] = memory_plan(model, tokenizer, None, schedule, plan, 2, [options.text]).as_json()
    print(json.dumps(document, indent=2, default=str))


if __name__ == "__main__":
    main()
