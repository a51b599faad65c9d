"""Progress of the loop: one report a scale, for progress bars, JSON and analyses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stepvar.generation.plan import ScalePlan


@dataclass
class ScaleReport:
    """How one scale ran.

    Attributes:
        plan: What was planned: the scale, whether it is skipped, how many tokens are kept.
        rows: Batch rows that were computed, unconditional copies included.
        kept_index: [B, K] kept positions, None where nothing was pruned.
        seconds: Time of the scale; on a GPU known once the generation has ended.
    """

    plan: ScalePlan
    rows: int = 0
    kept_index: Tensor | None = None
    seconds: float = 0.0


Observer = Callable[[ScaleReport], None]
"""Called by the loop after each scale, skipped ones included."""


@dataclass
class Stopwatch:
    """Times stages without making a GPU wait: marks are events there, resolved at the end."""

    device: torch.device
    marks: list[float | torch.cuda.Event] = field(default_factory=list)

    @property
    def deferred(self) -> bool:
        """Whether reading a time now would make the host wait for the device."""
        return self.device.type == "cuda"

    def mark(self) -> None:
        if self.deferred:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self, index: int) -> float:
        """Seconds between mark `index` and the next one."""
        start, stop = self.marks[index], self.marks[index + 1]
        if isinstance(start, torch.cuda.Event) and isinstance(stop, torch.cuda.Event):
            stop.synchronize()
            return float(start.elapsed_time(stop)) / 1000.0
        assert isinstance(start, float) and isinstance(stop, float), "marks are of one kind"
        return stop - start
