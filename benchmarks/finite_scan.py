"""Cost of looking at every weight while loading: a folder loaded with and without it, in turn.

    python benchmarks/finite_scan.py                    # 256 MiB of float32, medians of 9

Loading opens the file, builds the model without memory, and copies the weights out of the page cache. Times
are those of the processor, so that other programs disturb them little. Prints one line a number format: of
the file, and of the model where the weights are converted; medians, and the fastest load of each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stepvar.checkpoints import layouts
from stepvar.checkpoints.weights import Checkpoint

WIDTH = 2048
CASES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32),
)


def plain_copy(tensor: Tensor, dtype: torch.dtype | None, name: str, copy: bool = True) -> Tensor:
    """What `copy_finite` does, without looking."""
    return layouts.new_memory(tensor.shape, dtype or tensor.dtype).copy_(tensor)


def model_of(layers: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))


def load(file: Path, layers: int, dtype: torch.dtype) -> None:
    """Loads the file as every model of ours is loaded."""
    checkpoint = Checkpoint.open(file, unwrap=False)
    model = layouts.build_empty(model_of, {"layers": layers}, "the file", checkpoint.layout)
    layouts.require_same_layout(checkpoint.layout, model.state_dict(), "the file")
    layouts.fill(model, checkpoint, dtype=dtype)


def seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=256, help="of the file in float32")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = max(options.mebibytes * 2**20 // (4 * WIDTH**2), 1)
    for stored, wanted in CASES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            save_file({name: value.to(stored) for name, value in model_of(layers).state_dict().items()}, file)
            times: dict[bool, list[float]] = {True: [], False: []}
            for round_ in range(options.rounds + 1):
                for looking in (True, False) if round_ % 2 else (False, True):
                    copy = layouts.copy_finite if looking else plain_copy
                    with mock.patch.object(layouts, "copy_finite", copy):
                        spent = seconds(lambda: load(file, layers, wanted))  # noqa: B023  # called at once
                    if round_:
                        times[looking].append(spent)
        looked, plain = (statistics.median(times[key]) for key in (True, False))
        print(
            f"{str(stored)[6:]} to {str(wanted)[6:]}: {1000 * looked:.0f} ms, {1000 * plain:.0f} ms without "
            f"looking: {looked / plain - 1:+.1%}, fastest {min(times[True]) / min(times[False]) - 1:+.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
