"""Times that can be compared: warmed up, interleaved, medians with their spread."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """How far repeated measurements scatter, in seconds."""

    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more measurements."""
        if len(values) == 1:
            return cls(*(values[0],) * 5)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(min(values), lower, median, upper, max(values))

    def as_json(self) -> dict[str, float]:
        return {
            "min": self.minimum,
            "q1": self.lower_quartile,
            "median": self.median,
            "q3": self.upper_quartile,
            "max": self.maximum,
        }


@dataclass
class Samples(Generic[Result]):
    """Every measured run of one contestant.

    Attributes:
        seconds: Wall-clock time of each run.
        results: What each run returned.
    """

    seconds: list[float]
    results: list[Result]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(
    contestants: Mapping[str, Callable[[], Result]],
    repeats: int,
    device: torch.device | None = None,
    warm_up: int = 1,
) -> dict[str, Samples[Result]]:
    """Runs contestants in turn, round after round, so that all share the machine's moods.

    Args:
        contestants: What to run, by name.
        repeats: Measured rounds.
        device: Where they run; a GPU is waited for before and after each run.
        warm_up: Rounds before that are not measured.

    Raises:
        ValueError: When there is no round to measure.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least one round must be measured.")
    samples: dict[str, Samples[Result]] = {name: Samples([], []) for name in contestants}
    for turn in range(-warm_up, repeats):
        for name, run in contestants.items():
            _wait_for(device)
            started = time.perf_counter()
            result = run()
            _wait_for(device)
            spent = time.perf_counter() - started
            if turn >= 0:
                samples[name].seconds.append(spent)
                samples[name].results.append(result)
    return samples


def machine(device: torch.device) -> dict[str, str | int]:
    """What a measurement depends on: device, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
