"""Training of a VAE of pictures or of videos, within a budget of minutes.

A part of every batch decodes only the first scales and is compared with the picture at the resolution that
these scales stand for. So coarse scales carry layout and colour, and the last ones carry texture and edges.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from stepvar.models.infinity.vae import InfinityVAE
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.training.common.accelerator import build_accelerator
from stepvar.training.common.crops import to_signed
from stepvar.training.common.precision import mixed_precision
from stepvar.training.common.run import TrainingRun, to_device, update_ema
from stepvar.training.common.vae_losses import (
    bit_entropy,
    commitment_loss,
    entropy_loss,
    frequency_loss,
    gradient_loss,
)

logger = logging.getLogger(__name__)

_EMA_DECAY = 0.999
VAE_FOLDER = "vae"
"""Of the averaged weights, inside of a run's folder."""


@dataclass(frozen=True)
class VAETraining:
    """Settings of a run.

    Attributes:
        output: Folder of checkpoints, log and reconstruction sheets.
        minutes: Budget of training time; the learning rate reaches zero at its end.
        device: "cpu", "cuda", or "auto" for CUDA where it is.
        log_with: An experiment tracker: tensorboard, wandb, trackio, or empty for none.
        threads: CPU threads of the main process.
        workers: Processes that render.
        batch: Crops a step while crops are small; whole pictures a step hold the same number of pixels.
        crop: Side in pixels of the crops.
        full_share: Last part of the budget, which trains on whole pictures.
        learning_rate: Peak of AdamW.
        warmup_steps: Steps of linear rise.
        truncated_share: Part of the batch decoded from the first scales only.
        gradient_weight, frequency_weight, commitment_weight, entropy_weight: Weights of the loss terms
            beside the mean absolute error.
        log_every: Steps between log lines.
        checkpoint_minutes: Minutes between checkpoints.
        seed: Of weights and scenes.
        start: Folder of a finished VAE to continue from; none for fresh weights.
    """

    output: Path = Path("runs/vae")
    minutes: float = 35.0
    device: str = "cpu"
    log_with: str = ""
    threads: int = 2
    workers: int = 1
    batch: int = 16
    crop: int = 64
    full_share: float = 0.15
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    truncated_share: float = 0.15
    gradient_weight: float = 1.0
    frequency_weight: float = 0.3
    commitment_weight: float = 0.25
    entropy_weight: float = 0.05
    log_every: int = 100
    checkpoint_minutes: float = 3.0
    seed: int = 0
    start: Path | None = None


@dataclass(frozen=True)
class Reconstruction:
    """One batch, reconstructed.

    Attributes:
        pictures, targets: float32 [B, 3, side, side] in -1..1; of videos, some of their frames.
        whole: How many of the first pictures are decoded from all scales.
        features, latent: What was quantised, and the sum of its codes.
        residuals: Per scale what was quantised, float32 [B, d, rows, columns].
        bits: Per scale, bool [B, ..., d].
    """

    pictures: Tensor
    targets: Tensor
    whole: int
    features: Tensor
    latent: Tensor
    residuals: Sequence[Tensor]
    bits: Sequence[Tensor]


Settings = TypeVar("Settings", bound=VAETraining)
VAE = TypeVar("VAE", InfinityVAE, InfinityStarVAE)


class VAETrainer(TrainingRun[Settings], Generic[Settings, VAE]):
    """One run: the model, its moving average, the optimiser and the progress so far.

    A subclass builds the model and the batches, and implements reconstruction and evaluation.

    Args:
        settings: Of the run.
        canvas: Side in pixels of whole pictures.
    """

    def __init__(self, settings: Settings, canvas: int) -> None:
        accelerator = build_accelerator(settings.device, settings.output, settings.log_with)
        super().__init__(settings.output, settings, settings.minutes, accelerator)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.canvas = canvas
        self.model: VAE = to_device(self.build(), self.device)
        self.average: VAE = to_device(self.build(), self.device)
        self.average.load_state_dict(self.model.state_dict())
        self.average.eval().requires_grad_(False)
        optimiser = torch.optim.AdamW(
            self.model.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True
        )
        for module in (self.model, self.average):
            accelerator.prepare_model(module, evaluation_mode=True)
        self.optimiser = accelerator.prepare_optimizer(optimiser)
        self.resume()

    def build(self) -> VAE:
        """The VAE that training starts from."""
        raise NotImplementedError

    def crops(self, batch: int, side: int, seed: int) -> Iterator[Tensor]:
        """Endless batches of bytes, [batch, 3, ..., side, side]."""
        raise NotImplementedError

    def reconstruct(self, target: Tensor) -> Reconstruction:
        """Encodes, quantises and decodes a batch in -1..1."""
        raise NotImplementedError

    def evaluate(self) -> tuple[dict[str, Any], Tensor]:
        """Measures of the averaged VAE, and a sheet of pictures to inspect, uint8 [rows, columns, 3]."""
        raise NotImplementedError

    def run(self) -> Path:
        """Trains until the budget is spent and returns the folder of the saved VAE."""
        lines: list[dict[str, Tensor]] = []
        phase, batches = self.phase(), self._batches()
        saved, logged = self.spent, time.monotonic()
        while self.progress < 1.0:
            start = time.monotonic()
            if phase != self.phase():
                phase, batches = self.phase(), self._batches()
                # A log line describes one phase.
                lines, logged = [], time.monotonic()
            lines.append(self._train_step(to_signed(next(batches).to(self.device, non_blocking=True))))
            self.spent += time.monotonic() - start
            if self.step % self.settings.log_every == 0:
                self._log(lines, (time.monotonic() - logged) / len(lines))
                lines, logged = [], time.monotonic()
            if self.spent - saved > 60.0 * self.settings.checkpoint_minutes:
                self._checkpoint()
                saved, logged = self.spent, time.monotonic()
        self._checkpoint()
        self.finish()
        return self.folder / VAE_FOLDER

    def truncated(self, batch: int) -> int:
        """How many of a batch are decoded from their first scales."""
        share = self.settings.truncated_share * batch
        # In small batches one picture is truncated in some steps only.
        whole = int(share)
        return whole + int((self.step * (share - whole)) % 1.0 + (share - whole) >= 1.0)

    def phase(self) -> tuple[int, ...]:
        """Side in pixels of the present crops, and more in subclasses; a change starts new batches."""
        return (self._side(),)

    def _side(self) -> int:
        return self.canvas if self.progress >= 1.0 - self.settings.full_share else self.settings.crop

    def _batches(self) -> Iterator[Tensor]:
        side = self._side()
        batch = max(1, round(self.settings.batch * self.settings.crop**2 / side**2))
        # The step is part of the seed, so that a resumed run sees new scenes.
        return self.crops(batch, side, self.settings.seed + 1000 * self.step)

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.settings.warmup_steps)
        return self.settings.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * self.progress))

    def _train_step(self, target: Tensor) -> dict[str, Tensor]:
        """Updates the weights on a batch and returns what to log."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        with mixed_precision(self.device):
            result = self.reconstruct(target)
        parts = self.losses(result)
        self.optimiser.zero_grad()
        self.accelerator.backward(parts["loss"])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        update_ema(self.average, self.model, self.step, _EMA_DECAY)
        complete, target = result.pictures[: result.whole], result.targets[: result.whole]
        parts["squared_error"] = (complete.clamp(-1, 1) - target).square().mean()
        parts["entropy"] = scale_entropies(result.bits)
        return {name: value.detach() for name, value in parts.items()}

    def losses(self, result: Reconstruction) -> dict[str, Tensor]:
        """The terms of the loss, and their weighted sum as "loss"."""
        settings = self.settings
        rows, columns = torch.randint(16, (2,)).tolist()
        parts = {
            "absolute": (result.pictures - result.targets).abs().mean(),
            "gradient": gradient_loss(result.pictures, result.targets),
            "frequency": frequency_loss(result.pictures, result.targets, (rows, columns)),
            "commitment": commitment_loss(result.features, result.latent),
            "balance": entropy_loss(result.residuals),
        }
        parts["loss"] = (
            parts["absolute"]
            + settings.gradient_weight * parts["gradient"]
            + settings.frequency_weight * parts["frequency"]
            + settings.commitment_weight * parts["commitment"]
            + settings.entropy_weight * parts["balance"]
        )
        return parts

    def _log(self, lines: list[dict[str, Tensor]], seconds_per_step: float) -> None:
        means = {name: torch.stack([line[name] for line in lines]).mean(0) for name in lines[0]}
        record: dict[str, Any] = {
            "phase": list(self.phase()),
            "learning_rate": self._learning_rate(),
            "seconds_per_step": round(seconds_per_step, 3),
            "psnr": round(psnr(means.pop("squared_error").item()), 2),
            "entropy": [round(value, 3) for value in means.pop("entropy").tolist()],
        } | {name: round(value.item(), 4) for name, value in means.items()}
        self.append(record)
        logger.info("step %d: %s", self.step, record)

    def _checkpoint(self) -> None:
        """Writes the state of the run, the averaged VAE, its measures and a sheet of pictures."""
        self.save()
        self.average.save_pretrained(self.folder / VAE_FOLDER)
        measures, sheet = self.evaluate()
        Image.fromarray(sheet.numpy()).save(self.folder / f"sheet_{self.step:06d}.png")
        self.append(measures)
        logger.info("checkpoint at step %d: %s", self.step, measures)


def initialise_vae(vae: nn.Module) -> None:
    """Fresh weights that keep the variance of the signal, with small residual branches.

    torch's default initialisation shrinks the signal at every convolution, which takes such a small budget
    most of its first minutes to undo.
    """
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if ".conv2." in name or ".conv_out." in name:
                module.weight.data.mul_(0.2)


def scale_entropies(bits: Sequence[Tensor]) -> Tensor:
    """Mean entropy per bit of every scale over the batch, float32 [K], one bit at most.

    Args:
        bits: Per scale, bool [B, ..., d].
    """
    shares = (scale.flatten(0, -2).float().mean(dim=0) for scale in bits)
    return torch.stack([bit_entropy(share).mean() for share in shares])


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] with this mean squared error."""
    return 10.0 * math.log10(4.0 / max(squared_error, 1e-12))


def mean_psnr(pictures: Tensor, targets: Tensor) -> float:
    """Mean over the pictures [B, 3, ..., side, side] of their peak signal-to-noise ratio in dB."""
    errors = (pictures - targets).square().flatten(1).mean(dim=1).tolist()
    return sum(psnr(error) for error in errors) / len(errors)
