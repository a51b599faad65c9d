"""What number formats of the weights do to the embedded model: memory, likeness to float32, time.

    python benchmarks/number_formats.py             # torchao's int8 where torchao is installed

Bits are sampled, so a small change of the logits flips some of them: PSNR compares pictures of one seed.
Times are seconds of the processor, medians of rounds in turn, a warm-up left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import stepvar
from stepvar.allocator import keep_freed_memory

PROMPTS = ("two yellow stars above a striped blue ring on sand", "a checked red cross on grass")
MIB = 2**20


def plain(dtype: torch.dtype) -> Any:
    return stepvar.load_embedded(dtype=dtype)


def float8_storage() -> Any:
    pipeline = plain(torch.float32)
    pipeline.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    return pipeline


def int8_weights() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    pipeline = plain(torch.float32)
    quantize_(pipeline.transformer, Int8WeightOnlyConfig())
    return pipeline


FORMATS: dict[str, Callable[[], Any]] = {
    "float32": lambda: plain(torch.float32),
    "float8 storage": float8_storage,
    "int8, torchao": int8_weights,
    "bfloat16": lambda: plain(torch.bfloat16),
}


def draw(pipeline: Any) -> tuple[list[Tensor], float]:
    """Pixels in 0..1 of every prompt, and processor seconds a picture."""
    start = time.process_time()
    images = [pipeline(prompt, seed=7, output_type="pt").images.float() for prompt in PROMPTS]
    return images, (time.process_time() - start) / len(PROMPTS)


def psnr(images: list[Tensor], references: list[Tensor]) -> float:
    """Mean likeness in dB."""
    errors = [
        (image - reference).square().mean() for image, reference in zip(images, references, strict=True)
    ]
    return float(torch.stack([-10.0 * torch.log10(error.clamp_min(1e-12)) for error in errors]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Times and compares number formats of the embedded model.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    names = dict.fromkeys(["float32", *arguments.formats])
    if importlib.util.find_spec("torchao") is None and names.pop("int8, torchao", "absent") is None:
        print("torchao is not installed: its format is left out.")
    pipelines = {name: FORMATS[name]() for name in names}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    images = {name: draw(pipeline)[0] for name, pipeline in pipelines.items()}
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(arguments.rounds):
        for name, pipeline in pipelines.items():
            times[name].append(draw(pipeline)[1])
    print(f"{'format':16} {'transformer':>14} {'PSNR to float32':>16} {'time':>8}")
    for name, pipeline in pipelines.items():
        size = sum(weight.nbytes for weight in pipeline.transformer.parameters()) / MIB
        likeness = "" if name == "float32" else f"{psnr(images[name], images['float32']):.1f} dB"
        print(f"{name:16} {size:>10.1f} MiB {likeness:>16} {statistics.median(times[name]):>6.2f} s")


if __name__ == "__main__":
    main()
