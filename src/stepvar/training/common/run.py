"""Resumable training run within a time budget: its folder, log, trackers and checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from stepvar.training.common.accelerator import start_trackers

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
_RECORD = "run.json"

Settings = TypeVar("Settings", bound="DataclassInstance")
Module = TypeVar("Module", bound=nn.Module)


@dataclass
class Progress:
    """What a run has spent so far; part of its checkpoint.

    Attributes:
        step: Updates.
        spent: Seconds of training.
    """

    step: int = 0
    spent: float = 0.0

    def state_dict(self) -> dict[str, float]:
        """The fields, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.step, self.spent = int(state["step"]), float(state["spent"])


class TrainingRun(Generic[Settings]):
    """Base class of all trainers; a run continues from the checkpoint in its folder.

    A subclass prepares its modules and optimisers with `accelerator` before it calls `resume`.

    Args:
        folder: Of checkpoint, log and a record of the settings.
        settings: Of the run.
        minutes: Time budget.
        accelerator: Device, processes and trackers; of this run alone.
    """

    def __init__(self, folder: Path, settings: Settings, minutes: float, accelerator: Accelerator) -> None:
        self.folder, self.settings, self.minutes = folder, settings, minutes
        self.accelerator, self.device = accelerator, accelerator.device
        folder.mkdir(parents=True, exist_ok=True)
        self._spending = Progress()
        accelerator.register_for_checkpointing(self._spending)
        start_trackers(accelerator, settings)

    @property
    def step(self) -> int:
        """Updates so far."""
        return self._spending.step

    @step.setter
    def step(self, value: int) -> None:
        self._spending.step = value

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self._spending.spent

    @spent.setter
    def spent(self, value: float) -> None:
        self._spending.spent = value

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / CHECKPOINT

    @property
    def progress(self) -> float:
        """Share of the time budget that is spent, 1 at most."""
        return min(self.spent / (60.0 * self.minutes), 1.0)

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line to the log, step and minutes first, and its numbers to the trackers."""
        if not self.accelerator.is_main_process:
            return
        record = {"step": self.step, "minutes": round(self.spent / 60.0, 2)} | record
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
        self.accelerator.log(_numbers(record), step=self.step)

    def save(self) -> None:
        """Writes a checkpoint; the previous one is replaced only when the new one is complete.

        All processes of a run call it together.
        """
        fresh, former = (self.checkpoint.with_suffix(suffix) for suffix in (".partial", ".former"))
        if self.accelerator.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(fresh))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            record = self._spending.state_dict() | {"settings": asdict(self.settings)}
            (self.folder / _RECORD).write_text(json.dumps(record, indent=1, default=str) + "\n")
            if self.checkpoint.exists():
                self.checkpoint.replace(former)
            fresh.replace(self.checkpoint)
            shutil.rmtree(former, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Loads the checkpoint, if there is one."""
        # The former one is left where a run was killed between two renames.
        for folder in (self.checkpoint, self.checkpoint.with_suffix(".former")):
            if folder.exists():
                self.accelerator.load_state(str(folder))
                logger.info("resumed at step %d, %.1f minutes in", self.step, self.spent / 60.0)
                return

    def finish(self) -> None:
        """Closes the trackers."""
        self.accelerator.end_training()


def read_spending(folder: Path) -> Progress:
    """What the run of a folder had spent at its last checkpoint; nothing where there is none."""
    progress = Progress()
    if (folder / _RECORD).exists():
        progress.load_state_dict(json.loads((folder / _RECORD).read_text()))
    return progress


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """Numbers of a log line by name; those of a list are numbered."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            numbers |= {f"{name}/{index}": float(each) for index, each in enumerate(value)}
        elif isinstance(value, (int, float)):
            numbers[name] = float(value)
    return numbers


def to_device(module: Module, device: torch.device | str) -> Module:
    """A module on a device, of its own type (diffusers' `to` hides it)."""
    return module.to(device)


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves averaged weights towards the model's; the averaging window grows with the first steps."""
    decay = min(decay, step / (step + 10.0))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
