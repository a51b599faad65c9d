"""Training of a transformer, with its text encoder, on encoded scenes.

Bits of the inputs are flipped and the targets re-quantised, so that the model learns to repair its own
mistakes (Infinity's self-correction).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stepvar.training.common.accelerator import build_accelerator
from stepvar.training.common.curriculum import BatchSpec, Phase, batch_at
from stepvar.training.common.features import FeatureDataset
from stepvar.training.common.muon import Muon
from stepvar.training.common.precision import mixed_precision
from stepvar.training.common.prompted_model import PromptedModel
from stepvar.training.common.run import TrainingRun, to_device, update_ema

_LOG_EVERY = 25


@dataclass(frozen=True)
class TransformerTraining:
    """Settings of a run.

    Attributes:
        curriculum: Phases in order.
        minutes: Time budget; the learning rate reaches zero at its end.
        batch_factor: Multiplies the examples of every step; a GPU needs many.
        learning_rate: Peak, of AdamW; Muon's is matched to it.
        text_rate: The text encoder's share of it, small so that its pretraining is not lost.
        warmup: First part of the budget, in which the learning rate rises.
        object_weight: Weight of a token on an object against one on the background, which is three
            quarters of a scene and mostly unpredictable noise. Where only some tokens of a scale are run,
            they are drawn by this weight instead.
        flip: Largest share of flipped bits; each example draws its own share below it.
        drop_text: Share of the examples trained without their text, for guidance.
        average: Decay per step of the averaged weights, which are the ones packaged.
        checkpoint_minutes: Time between checkpoints.
        seed: Of the order, the words, the flips and the initial weights.
        compiled: Whether torch.compile fuses the blocks; needs a C++ compiler on a CPU.
    """

    curriculum: tuple[Phase, ...]
    minutes: float = 70.0
    batch_factor: int = 1
    learning_rate: float = 1.2e-3
    text_rate: float = 0.1
    warmup: float = 0.02
    object_weight: float = 4.0
    flip: float = 0.2
    drop_text: float = 0.1
    average: float = 0.995
    checkpoint_minutes: float = 3.0
    seed: int = 0
    compiled: bool = False


def build_optimisers(model: PromptedModel[Any], settings: TransformerTraining) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; groups name their share of the learning rate."""
    matrices = [p for p in model.transformer.blocks.parameters() if p.dim() == 2]
    text = list(model.text_encoder.parameters())
    chosen = {id(p) for p in (*matrices, *text)}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.02, "rate": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "rate": 1.0},
        {"params": text, "weight_decay": 0.0, "rate": settings.text_rate},
    ]
    return [
        Muon(matrices, settings.learning_rate, weight_decay=0.02),
        torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.97)),
    ]


class TransformerTrainer(TrainingRun[TransformerTraining]):
    """Runs, logs, checkpoints and resumes the training of a model of pictures or videos.

    In a process group every process draws examples of its own and the gradients are averaged. On a CPU two
    processes of one thread are faster than one process of two, whose many small operations wait for each
    other's threads.

    Args:
        model: To train.
        examples: Encoded scenes.
        folder: Checkpoints and log.
        settings: See `TransformerTraining`.
        accelerator: Of this run; by default one on the CPU.
    """

    def __init__(
        self,
        model: PromptedModel[Any],
        examples: FeatureDataset[Any],
        folder: Path,
        settings: TransformerTraining,
        accelerator: Accelerator | None = None,
    ) -> None:
        accelerator = accelerator or build_accelerator("cpu", folder)
        super().__init__(folder, settings, settings.minutes, accelerator)
        self.examples, self.model = examples, to_device(model, self.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        optimisers = build_optimisers(self.model, settings)
        # `trained` is the model itself, or what averages its gradients over processes.
        self.trained = accelerator.prepare_model(self.model)
        accelerator.prepare_model(self.average, evaluation_mode=True)
        self.optimisers = [accelerator.prepare_optimizer(optimiser) for optimiser in optimisers]
        self.resume()
        self.random = np.random.default_rng([settings.seed, self.step, accelerator.process_index])

    def run(self) -> Iterable[dict[str, Any]]:
        """Trains until the budget is spent; yields a log entry now and then."""
        last_log = last_save = self.spent
        losses: list[tuple[int, Tensor]] = []
        while self.progress < 1.0:
            started = time.perf_counter()
            batch = batch_at(self.settings.curriculum, self.progress, self.step)
            examples = batch.examples * self.settings.batch_factor
            losses.append((examples, self._train_step(batch, examples)))
            self.spent += self._mean_over_processes(time.perf_counter() - started)
            if self.step % _LOG_EVERY == 0:
                entry = self._log_entry(losses, self.spent - last_log)
                last_log, losses = self.spent, []
                yield entry
            if self.spent - last_save > 60.0 * self.settings.checkpoint_minutes:
                self.save()
                last_save = self.spent
        self.save()
        self.finish()

    def _mean_over_processes(self, seconds: float) -> float:
        """The same time in all processes, so that they change phases at the same step."""
        shared = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        return float(self.accelerator.reduce(shared, reduction="mean").item())

    def _train_step(self, batch: BatchSpec, examples: int) -> Tensor:
        """Updates the weights on a batch; returns the losses of its steps."""
        sizes = [len(part) for part in np.array_split(np.arange(examples), batch.passes)]
        total: Tensor | None = None
        for number, size in enumerate(sizes, start=1):
            last = number == len(sizes)
            with nullcontext() if last else self.accelerator.no_sync(self.trained):
                losses = self._losses(batch, size) * (size / examples)
                self.accelerator.backward(losses.mean())
            total = losses.detach() if total is None else total + losses.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._update()
        assert total is not None
        return total

    def _losses(self, batch: BatchSpec, examples: int) -> Tensor:
        settings = self.settings
        chosen = self.random.integers(len(self.examples), size=examples)
        features = self.examples.features[torch.from_numpy(chosen)].to(self.device)
        weights = self.examples.objects[torch.from_numpy(chosen)].to(self.device).float()
        if batch.latent_frames is not None:
            features, weights = features[:, :, : batch.latent_frames], weights[:, : batch.latent_frames]
        weights = 1.0 + (settings.object_weight - 1.0) * weights
        prompts = [self.examples.prompt(self.random, index) for index in chosen]
        dropped = (self.random.random(examples) < settings.drop_text).tolist()
        flip = torch.from_numpy(self.random.random(examples)).float().to(self.device) * settings.flip
        with mixed_precision(self.device):
            losses: Tensor = self.trained(
                features, weights, prompts, dropped, batch.scales, flip, batch.share, settings.compiled
            )
        return losses

    def _update(self) -> None:
        rate = self.settings.learning_rate * self._rate()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        update_ema(self.average, self.model, self.step, self.settings.average)

    def _rate(self) -> float:
        """Learning rate as a share of its peak: warm-up, plateau, linear decay over the last 60 %."""
        warm = min(self.progress / self.settings.warmup, 1.0) if self.step else 0.0
        return max(warm * min((1.0 - self.progress) / 0.6, 1.0), 1e-3)

    def _log_entry(self, steps: list[tuple[int, Tensor]], seconds: float) -> dict[str, Any]:
        """A line of the log, besides the step and the time."""
        scales = max(len(losses) for _, losses in steps)
        means = [
            torch.stack([losses[scale] for _, losses in steps if len(losses) > scale]).mean().item()
            for scale in range(scales)
        ]
        examples = self.accelerator.num_processes * sum(count for count, _ in steps)
        entry = {
            "scales": scales,
            "examples_per_second": round(examples / seconds, 1),
            "loss_per_scale": [round(value, 4) for value in means],
        }
        self.append(entry)
        return entry
