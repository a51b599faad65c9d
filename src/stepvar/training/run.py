"""A training on disk: its folder, its log, its checkpoint, and how much of its time is spent."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"

Settings = TypeVar("Settings")


class Stateful(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class TrainingRun:
    """What every training has; it goes on from the checkpoint in its folder.

    Args:
        folder: Where checkpoint and log go.
        settings: A dataclass; kept in the checkpoint for whoever reads it.
        minutes: Time budget.
        device: Where to train.

    Attributes:
        step: Updates so far.
        spent: Seconds so far.
    """

    def __init__(self, folder: Path, settings: Any, minutes: float, device: torch.device) -> None:
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

    def parts(self) -> dict[str, Stateful | Sequence[Stateful]]:
        """What a checkpoint holds, by name."""
        raise NotImplementedError

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line to the log; step and minutes come first."""
        record = {"step": self.step, "minutes": round(self.spent / 60.0, 2)} | record
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")

    def save(self) -> None:
        """Writes a checkpoint; the previous one is replaced only when the new one is whole."""
        state: dict[str, Any] = {"settings": asdict(self.settings), "step": self.step, "spent": self.spent}
        for name, part in self.parts().items():
            is_list = isinstance(part, Sequence)
            state[name] = [one.state_dict() for one in part] if is_list else part.state_dict()
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        for name, part in self.parts().items():
            ours, saved = (part, state[name]) if isinstance(part, Sequence) else ([part], [state[name]])
            for one, its_state in zip(ours, saved, strict=True):
                one.load_state_dict(its_state)
        self.step, self.spent = state["step"], state["spent"]
        logger.info("resumed at step %d, %.1f minutes in", self.step, self.spent / 60.0)


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves averaged weights towards the model's; the average is short while the training is young."""
    decay = min(decay, step / (step + 10.0))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)


def read_settings(kind: type[Settings], description: str | None, arguments: list[str] | None) -> Settings:
    """Settings, a dataclass, from a command line that has an option for every field."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    for field in fields(kind):  # type: ignore[arg-type]
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default
        )
    return kind(**vars(parser.parse_args(arguments)))
