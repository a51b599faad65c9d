"""Whole training of the picture model: sizes from 192 to 384 pixels, each from the weights before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepvar.training.common.run import read_spending
from stepvar.training.pictures.sizes import SIZES
from stepvar.training.pictures.train import PictureTraining


@dataclass(frozen=True)
class GrowthStep:
    """One size of the training.

    Attributes:
        size: Name of the model's size.
        minutes: Budget on two CPU cores; of the first step, with its VAE.
        scenes: Scenes to encode.
    """

    size: str
    minutes: float
    scenes: int


STEPS = (GrowthStep("192", 250.0, 32_768), GrowthStep("256", 95.0, 28_672), GrowthStep("384", 120.0, 16_384))
"""A small model learns layouts and shapes with few tokens a picture; later sizes add its finest scales."""


@dataclass(frozen=True)
class PictureGrowth:
    """The trainings of all sizes, one after the other; all of them use the VAE of the first one.

    Attributes:
        output: Folder with one folder for each size; the last one's weights are the finished model.
        steps: Sizes in order.
        factor: Multiplies all budgets.
        device, processes, log_with, compiled: As of `ModelTraining`.
    """

    output: Path
    steps: Sequence[GrowthStep] = STEPS
    factor: float = 1.0
    device: str = "auto"
    processes: int = 1
    log_with: str = ""
    compiled: bool = False

    def trainings(self) -> list[PictureTraining]:
        """The training of each size."""
        trainings: list[PictureTraining] = []
        for step in self.steps:
            former = trainings[-1].weights_folder if trainings else None
            trainings.append(
                PictureTraining(
                    output=self.output / step.size,
                    minutes=self.factor * step.minutes,
                    scenes=step.scenes,
                    weights=None,
                    device=self.device,
                    start=former,
                    vae=former / "vae" if former else None,
                    processes=self.processes,
                    log_with=self.log_with,
                    compiled=self.compiled,
                    size=step.size,
                )
            )
        return trainings

    def run(self) -> None:
        """Trains the sizes that are not finished."""
        for training in self.trainings():
            if not training.finished:
                training.run()

    def describe(self) -> str:
        """A table of the steps, their budgets and what is spent of them."""
        lines = [f"{'size':>4}  {'scales':>6}  {'tokens':>6}  {'scenes':>6}  {'minutes':>7}  {'spent':>6}"]
        for step, training in zip(self.steps, self.trainings(), strict=True):
            sides = SIZES[step.size].sides
            spent = sum(read_spending(folder).spent for folder in training.runs) / 60.0
            lines.append(
                f"{step.size:>4}  {len(sides):>6}  {sum(side**2 for side in sides):>6}  {step.scenes:>6}  "
                f"{training.minutes:>7.1f}  {spent:>6.1f}{'  finished' if training.finished else ''}"
            )
        return "\n".join(lines)
