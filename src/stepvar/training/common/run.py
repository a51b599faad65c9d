"""Resumable training run within a time budget: its folder, log and checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"

Settings = TypeVar("Settings", bound="DataclassInstance")
Module = TypeVar("Module", bound=nn.Module)


class Stateful(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


class TrainingRun(Generic[Settings]):
    """Base class of all trainers; a run continues from the checkpoint in its folder.

    Args:
        folder: Where checkpoint and log go.
        settings: Of the run; stored in the checkpoint as JSON, for the record.
        minutes: Time budget.
        device: Where to train.

    Attributes:
        step: Updates so far.
        spent: Seconds so far.
    """

    def __init__(self, folder: Path, settings: Settings, minutes: float, device: torch.device) -> None:
        self.folder, self.settings, self.minutes, self.device = folder, settings, minutes, device
        folder.mkdir(parents=True, exist_ok=True)
        self.step, self.spent = 0, 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def progress(self) -> float:
        """Share of the time budget that is spent, 1 at most."""
        return min(self.spent / (60.0 * self.minutes), 1.0)

    def parts(self) -> Mapping[str, Stateful]:
        """Modules and optimisers that a checkpoint holds, by name."""
        raise NotImplementedError

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line to the log; step and minutes come first."""
        record = {"step": self.step, "minutes": round(self.spent / 60.0, 2)} | record
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")

    def save(self) -> None:
        """Writes a checkpoint; the previous one is replaced only when the new one is complete."""
        settings = json.dumps(asdict(self.settings), default=str)
        state: dict[str, Any] = {"settings": settings, "step": self.step, "spent": self.spent}
        state |= {name: part.state_dict() for name, part in self.parts().items()}
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Loads the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.spent = state["step"], state["spent"]
        logger.info("resumed at step %d, %.1f minutes in", self.step, self.spent / 60.0)


def to_device(module: Module, device: torch.device | str) -> Module:
    """A module on a device, of its own type (diffusers' `to` hides it)."""
    return module.to(device)


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves averaged weights towards the model's; the averaging window grows with the first steps."""
    decay = min(decay, step / (step + 10.0))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
