"""Number formats of the weights of the embedded model: memory, likeness to float32, time.

    pip install torchao optimum-quanto          # what is not installed is left out, and named
    python benchmarks/number_formats.py
    python benchmarks/number_formats.py --prompts 1 --rounds 1

Sizes are the bytes of parameters and buffers as they are stored: of quantised weights the integers, their
scales and zero points. Bits are sampled, so a small change of the logits flips some of them: PSNR compares
pictures of one seed. Times are seconds of the processor, medians of rounds in which all formats take turns; a
warm-up is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import stepvar
from stepvar.allocator import keep_freed_memory

PROMPTS = (
    "two yellow stars above a striped blue ring on sand",
    "a checked red cross on grass",
    "a green square left of a dotted purple circle on water",
)
MIB = 2**20


def plain(dtype: torch.dtype) -> Any:
    return stepvar.load_embedded(dtype=dtype)


def float8_storage() -> Any:
    pipeline = plain(torch.float32)
    pipeline.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    return pipeline


def torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    pipeline = plain(torch.float32)
    quantize_(pipeline.transformer, Int8WeightOnlyConfig())
    return pipeline


def quanto_int8() -> Any:
    from optimum import quanto

    pipeline = plain(torch.float32)
    quanto.quantize(pipeline.transformer, weights=quanto.qint8)
    quanto.freeze(pipeline.transformer)
    return pipeline


FORMATS: dict[str, tuple[str | None, Callable[[], Any]]] = {
    "float32": (None, lambda: plain(torch.float32)),
    "bfloat16": (None, lambda: plain(torch.bfloat16)),
    "float8 storage": (None, float8_storage),
    "int8, torchao": ("torchao", torchao_int8),
    "int8, quanto": ("optimum.quanto", quanto_int8),
}
"""Name of a format -> the package that it needs, and what makes a pipeline."""


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they lie in memory, shared storage counted once."""
    seen: dict[tuple[str, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for part in inner_tensors(tensor):
            storage = part.untyped_storage()
            seen[str(part.device), storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a quantised one consists of; others are themselves.

    torchao and quanto keep integers, scales and zero points in a subclass of Tensor that computes as if it
    were as large as the float tensor, and says so of its size; it names its parts for torch.compile.
    bitsandbytes keeps the integers as they are, and the scales in `quant_state`.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        for name in flatten()[0]:
            yield from inner_tensors(getattr(tensor, name))
        return
    yield tensor
    for holder in (getattr(tensor, "quant_state", None), getattr(tensor, "SCB", None)):
        found = [holder, *vars(holder).values()] if hasattr(holder, "__dict__") else [holder]
        yield from (part for part in found if isinstance(part, Tensor))


def draw(pipeline: Any, prompts: tuple[str, ...]) -> tuple[list[Tensor], float]:
    """Pixels in 0..1 of every prompt, and processor seconds a picture."""
    start = time.process_time()
    images = [pipeline(prompt, seed=7, output_type="pt").images.float() for prompt in prompts]
    return images, (time.process_time() - start) / len(prompts)


def psnr(images: list[Tensor], references: list[Tensor]) -> float:
    """Mean likeness in dB."""
    errors = [
        (image - reference).square().mean() for image, reference in zip(images, references, strict=True)
    ]
    return float(torch.stack([-10.0 * torch.log10(error.clamp_min(1e-12)) for error in errors]).mean())


def is_installed(package: str | None) -> bool:
    if package is None:
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Times and compares number formats of the embedded model.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--longest", type=float, default=20.0, help="seconds a picture; slower formats stop")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    prompts = PROMPTS[: arguments.prompts]
    names = dict.fromkeys(["float32", *arguments.formats])
    absent = [name for name in names if not is_installed(FORMATS[name][0])]
    pipelines: dict[str, Any] = {}
    images, times = {}, {}
    for name in (name for name in names if name not in absent):
        pipelines[name] = FORMATS[name][1]()
        pipelines[name].set_progress_bar_config(disable=True)
        start = time.process_time()
        first = draw(pipelines[name], prompts[:1])[0]
        images[name] = first + (draw(pipelines[name], prompts[1:])[0] if len(prompts) > 1 else [])
        times[name] = [(time.process_time() - start) / len(prompts)]
        print(f"{name}: {times[name][0]:.1f} s a picture at first", file=sys.stderr, flush=True)
    quick = [name for name, found in times.items() if found[0] <= arguments.longest]
    for name in quick if arguments.rounds else ():
        times[name].clear()
    for _ in range(arguments.rounds):
        for name in quick:
            times[name].append(draw(pipelines[name], prompts)[1])
    print(f"{'format':16} {'transformer':>14} {'PSNR to float32':>16} {'time':>8}")
    for name, pipeline in pipelines.items():
        size = stored_bytes(pipeline.transformer) / MIB
        likeness = "" if name == "float32" else f"{psnr(images[name], images['float32']):.1f} dB"
        note = "" if name in quick else " (once)"
        seconds = statistics.median(times[name])
        print(f"{name:16} {size:>10.1f} MiB {likeness:>16} {seconds:>6.2f} s{note}")
    for name in absent:
        print(f"{name} was left out: {FORMATS[name][0]} is not installed.")


if __name__ == "__main__":
    main()
