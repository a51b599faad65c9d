"""Stages of an embedded model's training: VAE, encoded scenes, text encoder, transformer, packaging."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from stepvar.models.pipeline import NextScalePipeline
from stepvar.training.common.accelerator import build_accelerator, launch, uses_cuda
from stepvar.training.common.features import SHARD, FeatureDataset
from stepvar.training.common.packaging import load_average, package
from stepvar.training.common.progress_bars import show_encoding, show_training
from stepvar.training.common.prompted_model import PromptedModel
from stepvar.training.common.run import CHECKPOINT, read_spending
from stepvar.training.common.text_pretraining import LabelledPrompts, pretrained_text_encoder
from stepvar.training.common.transformer_trainer import TransformerTrainer, TransformerTraining
from stepvar.training.common.vae_trainer import VAETraining

logger = logging.getLogger(__name__)

GPU_BATCH_FACTOR = 16
"""Examples a step on a GPU, relative to those of one process on a CPU."""

VAESettings = TypeVar("VAESettings", bound=VAETraining)


@dataclass(frozen=True)
class ModelTraining(ABC):
    """The training of an embedded model; every stage resumes where it stopped.

    Attributes:
        output: Folder of checkpoints, logs and encoded scenes.
        minutes: Budget of VAE and transformer together.
        scenes: Scenes to encode for the transformer.
        weights: Folder of the finished model; by default "weights" in the output.
        device: "cpu", "cuda", or "auto" for CUDA where it is.
        start: A finished model whose transformer is trained further; none trains from scratch.
        vae: A finished VAE to use instead of training one.
        processes: Processes of the transformer's training on a CPU.
        log_with: An experiment tracker: tensorboard, wandb, trackio, or empty for none.
        compiled: Whether torch.compile fuses the blocks; needs a C++ compiler on a CPU.
    """

    output: Path
    minutes: float
    scenes: int
    weights: Path | None
    device: str
    start: Path | None
    vae: Path | None
    processes: int
    log_with: str
    compiled: bool

    vae_share: ClassVar[float]
    """Share of the minutes that the VAE gets; the transformer has the rest."""

    features: ClassVar[type[FeatureDataset[Any]]]
    """What encoded scenes are read as."""

    vocabulary: ClassVar[Sequence[str]]
    prompts: ClassVar[LabelledPrompts]
    """Words, and what the text encoder learns them from."""

    @abstractmethod
    def train_vae(self, folder: Path, minutes: float) -> Path:
        """Trains a VAE; returns its folder."""

    @abstractmethod
    def encode(self, vae: Path, folder: Path, shards: int) -> Iterator[int]:
        """Encodes training scenes; yields the number of shards done so far."""

    @abstractmethod
    def build_model(self) -> PromptedModel[Any]:
        """Transformer and text encoder with fresh weights."""

    @abstractmethod
    def transformer_settings(self, minutes: float) -> TransformerTraining:
        """Settings of the transformer's training."""

    @abstractmethod
    def assemble(self, vae: Path, model: PromptedModel[Any]) -> NextScalePipeline:
        """A pipeline of a trained model and a VAE's folder."""

    @property
    def place(self) -> str:
        """The torch device."""
        return "cuda" if uses_cuda(self.device) else "cpu"

    @property
    def on_cpu(self) -> bool:
        """Whether training runs on the CPU."""
        return self.place == "cpu"

    @property
    def batch_factor(self) -> int:
        """Multiplies the examples of every step."""
        return 1 if self.on_cpu else GPU_BATCH_FACTOR

    @property
    def weights_folder(self) -> Path:
        """Folder of the finished model."""
        return self.weights or self.output / "weights"

    @property
    def transformer_minutes(self) -> float:
        """Budget of the transformer: what the VAE leaves of the minutes."""
        return self.minutes if self.vae is not None else (1.0 - self.vae_share) * self.minutes

    @property
    def runs(self) -> list[Path]:
        """Folders of the VAE's run, if it is trained, and of the transformer's."""
        return [self._folder] if self.vae is not None else [self.output / "vae", self._folder]

    @property
    def finished(self) -> bool:
        """Whether the model is packaged, and the transformer's budget spent."""
        spent = read_spending(self._folder).spent
        return self.weights_folder.is_dir() and spent >= 60.0 * self.transformer_minutes

    def vae_settings(self, usual: VAESettings, folder: Path, minutes: float) -> VAESettings:
        """Usual settings of a VAE's training, with this run's place and budget and this machine's size."""
        return replace(
            usual,
            output=folder,
            minutes=minutes,
            device=self.place,
            log_with=self.log_with,
            threads=cores(),
            batch=self.batch_factor * usual.batch,
            workers=usual.workers if self.on_cpu else max(cores() - 2, 1),
        )

    def run(self) -> None:
        """Runs all stages."""
        vae = self.vae or self.train_vae(self.output / "vae", self.vae_share * self.minutes)
        shards = -(-self.scenes // SHARD)
        show_encoding(self.encode(vae, self.output / "features", shards), shards)
        text = None
        if self.start is None:
            folder = self.output / "text_encoder"
            text = pretrained_text_encoder(folder, self.vocabulary, self.prompts)
        launch(self.train_transformer, (text,), self.processes if self.on_cpu else 1)
        model = self.build_model()
        load_average(model, self._folder / CHECKPOINT)
        size = package(self.assemble(vae, model), self.weights_folder)
        logger.info("the model is in %s: %.1f MB", self.weights_folder, size / 1e6)

    def train_transformer(self, text: Path | None) -> None:
        """Trains the transformer; called in every process that takes part.

        Args:
            text: Folder of a pretrained text encoder.
        """
        settings = self.transformer_settings(self.transformer_minutes)
        torch.manual_seed(settings.seed)
        model = self.build_model()
        if self.start is not None:
            model.load_packaged(self.start)
        if text is not None:
            model.load_text_encoder(text)
        accelerator = build_accelerator(self.device, self._folder, self.log_with)
        features = self.features.load(self.output / "features")
        show_training(TransformerTrainer(model, features, self._folder, settings, accelerator))

    @property
    def _folder(self) -> Path:
        return self.output / "transformer"


def cores() -> int:
    """Processor cores of this machine."""
    return os.cpu_count() or 1
