"""Training of the scene network within a budget of minutes, resumable.

First the backbone learns to find objects and their attributes. Then it is frozen, scenes are encoded once,
and the encoders of pictures and prompts learn from the encoded scenes, which costs little and shows every
scene in many words.

Source: freezing the image side as in Zhai et al., "LiT", arXiv 2111.07991.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepvar.scenes.network.image_backbone import normalise_pixels
from stepvar.scenes.network.network import SceneNetwork
from stepvar.training.common.accelerator import build_accelerator
from stepvar.training.common.crops import stream
from stepvar.training.common.muon import Muon
from stepvar.training.common.precision import mixed_precision
from stepvar.training.common.run import TrainingRun, to_device
from stepvar.training.scene_network.batches import (
    MapBatch,
    MapBatches,
    PromptBatch,
    PromptBatches,
    RenderedScenes,
    augment,
)
from stepvar.training.scene_network.dataset import ProposalDataset
from stepvar.training.scene_network.losses import alignment_losses, map_losses, target_loss
from stepvar.training.scene_network.targets import SPEC_TARGETS

logger = logging.getLogger(__name__)

ENCODED = "encoded.pt"

_FIRST_SCALE, _LARGEST_SCALE = 14.0, 100.0
_TARGET_WEIGHT = 5.0
_TARGET_SCALE = 10.0


@dataclass(frozen=True)
class SceneNetworkTraining:
    """Settings of a run.

    Attributes:
        output: Folder of the checkpoint, the log and the finished network.
        minutes: Budget of training time; learning rates reach zero at the end of each stage.
        device: "cpu", "cuda", or "auto" for CUDA where it is.
        log_with: An experiment tracker: tensorboard, wandb, trackio, or empty for none.
        threads: CPU threads of the main process.
        workers: Processes that render and write prompts; 0 does it in the main one.
        backbone_share, encoding_share: Parts of the budget; the encoders have the rest.
        backbone_batch: Pictures of 192 pixels a step of the backbone.
        prompt_batch: Scenes a step of the encoders.
        negatives: False prompts of every scene.
        calibration_steps, calibration_rate: Steps and first learning rate of `calibrate_heads`.
        least_encoded: Scenes to encode even when the budget has no time for them.
        backbone_filter_rate, backbone_rate: Peak learning rates of the backbone: Muon's of filters, AdamW's
            of the rest.
        prompt_matrix_rate, prompt_rate: The same of the encoders.
        warmup: First part of each stage, in which its learning rates rise.
        plateau: Part of each stage after which they fall.
        log_every: Steps between log lines.
        checkpoint_minutes: Minutes between checkpoints.
        seed: Of weights and scenes.
    """

    output: Path = Path("runs/scene_network")
    minutes: float = 12.0
    device: str = "cpu"
    log_with: str = ""
    threads: int = 1
    workers: int = 1
    backbone_share: float = 0.30
    encoding_share: float = 0.12
    backbone_batch: int = 24
    prompt_batch: int = 64
    negatives: int = 2
    calibration_steps: int = 250
    calibration_rate: float = 3e-2
    least_encoded: int = 256
    backbone_filter_rate: float = 6e-3
    backbone_rate: float = 3e-3
    prompt_matrix_rate: float = 2e-3
    prompt_rate: float = 2e-3
    warmup: float = 0.04
    plateau: float = 0.3
    log_every: int = 50
    checkpoint_minutes: float = 2.0
    seed: int = 0


class Alignment(nn.Module):
    """Parameters of the encoders' training that the finished network does not need.

    Args:
        features: Of the embeddings.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE), dtype=torch.float32))
        # A linear read-out of attributes, shared by both embeddings, aligns them from the start.
        self.reader = nn.Linear(features, SPEC_TARGETS)

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of the cosines."""
        return self.log_scale.exp().clamp(max=_LARGEST_SCALE)


class SceneNetworkTrainer(TrainingRun[SceneNetworkTraining]):
    """One run: the network, its optimisers and the progress so far."""

    def __init__(self, config: SceneNetworkTraining) -> None:
        accelerator = build_accelerator(config.device, config.output, config.log_with)
        super().__init__(config.output, config, config.minutes, accelerator)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.network = to_device(SceneNetwork(), self.device)
        self.alignment = to_device(Alignment(self.network.size.features), self.device)
        encoders = nn.ModuleList((self.network.picture_encoder, self.network.word_encoder, self.alignment))
        self.optimisers = {
            "backbone": _optimisers(self.network.backbone, config.backbone_filter_rate, config.backbone_rate),
            "encoders": _optimisers(encoders, config.prompt_matrix_rate, config.prompt_rate),
        }
        for module in (self.network, self.alignment):
            accelerator.prepare_model(module, evaluation_mode=True)
        self.optimisers = {
            stage: [accelerator.prepare_optimizer(optimiser) for optimiser in pair]
            for stage, pair in self.optimisers.items()
        }
        self.resume()
        self.random = np.random.default_rng([config.seed, self.step])

    def run(self) -> Path:
        """Trains until the budget is spent and returns the folder of the finished network."""
        finished = self.progress >= 1.0
        backbone_end = self.settings.backbone_share
        prompts_start = backbone_end + self.settings.encoding_share
        if self.progress < backbone_end:
            batches = stream(MapBatches(self.settings.backbone_batch, self._seed(0)), self.settings.workers)
            self._stage("backbone", batches, 0.0, backbone_end)
            self.calibrate_heads()
        self.network.backbone.eval().requires_grad_(False)
        if not finished:
            encoded = self._encoded(prompts_start)
            words = self.network.words
            prompts = PromptBatches(
                encoded.scenes,
                words.get_vocab(),
                words.eos_token_id,
                self.settings.prompt_batch,
                self.settings.negatives,
                self._seed(2),
            )
            self._stage("encoders", stream(prompts, self.settings.workers), prompts_start, 1.0, encoded)
        self.network.eval().save(self.folder / "network")
        self.finish()
        return self.folder / "network"

    def _seed(self, stage: int) -> int:
        # The step is part of the seed, so that a resumed run sees new scenes.
        return self.settings.seed + 1000 * self.step + 100 * stage

    def _stage(
        self,
        name: str,
        batches: Iterator[Any],
        start: float,
        end: float,
        encoded: ProposalDataset | None = None,
    ) -> None:
        lines: list[dict[str, Tensor]] = []
        saved = logged = self.spent
        over = False
        while not over:
            started = time.monotonic()
            rate = self._rate((self.progress - start) / (end - start))
            batch = next(batches).to(self.device)
            parts = self._map_losses(batch) if encoded is None else self._prompt_losses(batch, encoded)
            self._update(name, parts["loss"], rate)
            lines.append({key: value.detach() for key, value in parts.items()})
            self.spent += time.monotonic() - started
            over = self.progress >= end
            if self.step % self.settings.log_every == 0 or over:
                self._log(name, lines, (self.spent - logged) / len(lines), rate)
                lines, logged = [], self.spent
            if self.spent - saved > 60.0 * self.settings.checkpoint_minutes:
                self.save()
                saved = self.spent
        self.save()

    def _rate(self, part: float) -> float:
        """Learning rate at a part of a stage as a share of its peak: warm-up, plateau, linear fall."""
        rise = (part + 1e-3) / self.settings.warmup
        return min(1.0, rise, max((1.0 - part) / (1.0 - self.settings.plateau), 0.0))

    def _map_losses(self, batch: MapBatch) -> dict[str, Tensor]:
        self.network.backbone.train()
        with mixed_precision(self.device):
            pictures = augment(normalise_pixels(batch.pictures), self.random)
            return map_losses(self.network.backbone(pictures), batch)

    def calibrate_heads(self) -> None:
        """Fits the heads to features of the frozen backbone.

        A batch has pictures of one side, so the batch statistics of the normalisations carry the side while
        the backbone trains. Frozen, they do not, and sizes, which are relative to the side, would be wrong.
        """
        backbone = self.network.backbone.eval().requires_grad_(False)
        backbone.heads.requires_grad_(True)
        optimiser = torch.optim.AdamW(backbone.heads.parameters(), weight_decay=0.0)
        batches = stream(MapBatches(self.settings.backbone_batch, self._seed(3)), self.settings.workers)
        for step in range(self.settings.calibration_steps):
            started = time.monotonic()
            batch = next(batches).to(self.device)
            left = 1.0 - step / self.settings.calibration_steps
            optimiser.param_groups[0]["lr"] = left * self.settings.calibration_rate
            map_losses(backbone(normalise_pixels(batch.pictures)), batch)["loss"].backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            self.spent += time.monotonic() - started
        self.save()

    def _prompt_losses(self, batch: PromptBatch, encoded: ProposalDataset) -> dict[str, Tensor]:
        with mixed_precision(self.device):
            pictures = self.network.picture_encoder(*encoded.at(batch.scenes))
            prompts = self.network.word_encoder(batch.ids, batch.lengths)
            scale = self.alignment.scale
            parts = alignment_losses(pictures, prompts, scale, batch)
            shown, asked = (self.alignment.reader(_TARGET_SCALE * vectors) for vectors in (pictures, prompts))
            parts["picture_targets"] = target_loss(shown, batch.scene_targets)
            parts["prompt_targets"] = target_loss(asked, batch.prompt_targets, batch.prompt_known)
        parts["loss"] = parts["loss"] + _TARGET_WEIGHT * (parts["picture_targets"] + parts["prompt_targets"])
        parts["scale"] = scale
        return parts

    def _update(self, name: str, loss: Tensor, rate: float) -> None:
        self.accelerator.backward(loss)
        for optimiser in self.optimisers[name]:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["peak"]
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1

    def _encoded(self, end: float) -> ProposalDataset:
        """Encoded scenes: those of an earlier run, or as many as there is time for."""
        file = self.folder / ENCODED
        if file.exists():
            return ProposalDataset.load(file, self.device)
        encoded = ProposalDataset.empty()
        batches = stream(RenderedScenes(self.settings.backbone_batch, self._seed(1)), self.settings.workers)
        while self.progress < end or len(encoded) < self.settings.least_encoded:
            started = time.monotonic()
            pictures, scenes = next(batches)
            encoded.add(self.network, pictures, scenes)
            self.spent += time.monotonic() - started
        encoded = encoded.concatenated(self.device)
        encoded.save(file)
        self.append({"encoded": len(encoded)})
        self.save()
        return encoded

    def _log(self, stage: str, lines: Sequence[dict[str, Tensor]], seconds: float, rate: float) -> None:
        means = {name: torch.stack([line[name] for line in lines]).mean().item() for name in lines[0]}
        record = {
            "stage": stage,
            "rate": round(rate, 3),
            "seconds_per_step": round(seconds, 3),
        } | {name: round(value, 4) for name, value in means.items()}
        self.append(record)
        logger.info("step %d: %s", self.step, record)


def _optimisers(module: nn.Module, matrix_rate: float, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for filters of convolutions and matrices of blocks, AdamW for the rest."""
    matrices = [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.dim() > 2 or (parameter.dim() == 2 and ".blocks." in name)
    ]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    pair = [
        Muon(matrices, matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, rate, betas=(0.9, 0.98), weight_decay=1e-4),
    ]
    for optimiser, peak in zip(pair, (matrix_rate, rate), strict=True):
        for group in optimiser.param_groups:
            group["peak"] = peak
    return pair
