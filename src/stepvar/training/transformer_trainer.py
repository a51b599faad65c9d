"""Training of the embedded transformer, with its text encoder, on encoded scenes.

A curriculum from coarse to fine scales: coarse ones carry the meaning and cost little, fine ones
hold hundreds of tokens each and need few pictures. Bits of the inputs are flipped and the targets
re-quantised, so that the model learns to repair its own mistakes (Infinity's self-correction).
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.training import bit_losses, take_tokens
from stepvar.models.infinity.quantizer import quantize_multiscale, resize_area
from stepvar.models.infinity.training import init_weights, teacher_forced_logits
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.scenes import VOCABULARY
from stepvar.training.muon import Muon
from stepvar.training.pictures.sizes import EmbeddedSize, build_transformer
from stepvar.training.precision import mixed_precision
from stepvar.training.prompted_model import Examples, PromptedModel, draw_tokens, weigh_kept
from stepvar.training.run import TrainingRun, update_ema


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        scales: How many are run, coarse ones first; None for all.
        pictures: Of every process.
        share: Of the tokens of a fine scale that are run.
        latent_frames: Of a video, the first ones; None for all.
    """

    scales: int | None
    pictures: int
    share: float = 1.0
    latent_frames: int | None = None


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
        share: Of the time budget.
        batches: Taken in turn, step by step.
    """

    share: float
    batches: tuple[Batch, ...]


COARSE, FINE, WHOLE = Batch(7, 24), Batch(None, 10, share=0.4), Batch(None, 6)
"""Coarse scales settle what stands where, which takes many pictures, and a third of the time a picture."""

FROM_NOTHING = (
    Phase(0.2, (Batch(6, 32),)),
    Phase(0.15, (COARSE,)),
    Phase(0.5, (FINE, COARSE)),
    Phase(0.15, (WHOLE, COARSE)),
)
GOING_ON = (Phase(0.85, (Batch(None, 10, share=0.3), COARSE)), Phase(0.15, (WHOLE, COARSE)))
"""For a model that knows its scales already, or all but the finest."""


@dataclass(frozen=True)
class TransformerTraining:
    """Settings of a run.

    Attributes:
        minutes: Time budget; the learning rate follows it to zero.
        curriculum: Phases in order.
        batch_factor: Multiplies the pictures of every step; a GPU wants many.
        learning_rate: Peak, of AdamW; Muon's is matched to it.
        text_rate: The text encoder's share of it: what it was taught before shall not be lost.
        object_weight: Weight of a token on an object against one on the background, which is three
            quarters of a scene and mostly noise that nobody can predict. Where only some tokens of a scale
            are run, they are drawn by this weight instead.
        flip: Largest share of flipped bits; each picture draws its own share below it.
        drop_text: Share of the pictures trained without their text, for guidance.
        average: Decay per step of the averaged weights that are shipped.
        checkpoint_minutes: Time between checkpoints.
        seed: Of the order, the words, the flips and the initial weights.
        size: Name of the model's size, see `stepvar.training.pictures.sizes.SIZES`.
        compiled: Whether torch.compile fuses the blocks; needs a C++ compiler on a CPU.
    """

    minutes: float = 70.0
    curriculum: tuple[Phase, ...] = FROM_NOTHING
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
    size: str = "192"
    compiled: bool = False


class EmbeddedModel(PromptedModel[InfinityTransformer]):
    """The embedded picture model.

    Args:
        size: Of the pictures and the transformer.
    """

    def __init__(self, size: EmbeddedSize) -> None:
        transformer = build_transformer(size)
        init_weights(transformer)
        super().__init__(transformer, VOCABULARY)
        self.grids = size.grids

    def unconditional(self, tokens: int) -> Tensor:
        return self.transformer.unconditional_text[:tokens]

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # Scales that a model of smaller pictures lacks begin as its last one.
        levels = state["level_embedding.weight"]
        rows = [min(level, len(levels) - 1) for level in range(len(self.grids))]
        return {**state, "level_embedding.weight": levels[rows]}

    def losses(
        self,
        features: Tensor,
        weights: Tensor,
        prompts: Sequence[str],
        dropped: Sequence[bool],
        scales: int | None,
        flip: Tensor,
        share: float = 1.0,
        compiled: bool = False,
    ) -> Tensor:
        with torch.no_grad():
            code = quantize_multiscale(features.float(), self.grids, flip)
        text = self.encode_text(prompts, dropped)
        shrunk = [resize_area(weights[:, None], grid).flatten(1) for grid in self.grids[:scales]]
        kept = [draw_tokens(weight, share) for weight in shrunk]
        schedule = ScaleSchedule.from_grids(self.grids)
        inputs = code.teacher_inputs[: len(shrunk) - 1]
        logits = teacher_forced_logits(self.transformer, text, inputs, schedule, kept, compiled)
        bits = [take_tokens(bit.flatten(1, 2), chosen) for bit, chosen in zip(code.bits, kept, strict=False)]
        return bit_losses(logits, bits, weigh_kept(shrunk, kept))


def build_optimisers(model: PromptedModel, settings: TransformerTraining) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; groups name their share of the learning rate."""
    matrices = [p for p in model.transformer.blocks.parameters() if p.dim() == 2]
    text = list(model.text_encoder.parameters())
    chosen = {id(p) for p in (*matrices, *text)}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.02, "rate": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "rate": 1.0},
        {"params": text, "weight_decay": 0.0, "rate": settings.text_rate},
    ]
    return [
        Muon(matrices, settings.learning_rate, weight_decay=0.02),
        torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.97)),
    ]


class TransformerTrainer(TrainingRun):
    """Runs, logs, checkpoints and resumes the training of a model of pictures or videos.

    In a process group every process draws examples of its own and the gradients are averaged; the
    first process logs and saves. On a CPU two processes of one thread beat one process of two, whose
    many small operations wait for each other's threads.

    Args:
        model: To train, on its device.
        examples: Encoded scenes.
        folder: Checkpoints and log.
        settings: See `TransformerTraining`.
    """

    settings: TransformerTraining

    def __init__(
        self, model: PromptedModel, examples: Examples, folder: Path, settings: TransformerTraining
    ) -> None:
        device = next(model.parameters()).device
        super().__init__(folder, settings, settings.minutes, device)
        self.examples, self.model = examples, model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimisers = build_optimisers(model, settings)
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.processes = distributed.get_world_size() if distributed.is_initialized() else 1
        self.resume()
        self.random = np.random.default_rng([settings.seed, self.step, self.rank])

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimisers": self.optimisers}

    def run(self) -> Iterable[dict[str, Any]]:
        """Trains until the budget is spent; yields a log entry now and then."""
        last_log = last_save = self.spent
        seen: list[tuple[int, Tensor]] = []
        while self.progress < 1.0:
            started = time.perf_counter()
            batch = self._next_batch()
            seen.append((batch.pictures, self._train_step(batch)))
            self.spent += self._agree(time.perf_counter() - started)
            if self.step % 25 == 0:
                entry = self._log_entry(seen, self.spent - last_log)
                last_log, seen = self.spent, []
                yield entry
            if self.rank == 0 and self.spent - last_save > 60.0 * self.settings.checkpoint_minutes:
                self.save()
                last_save = self.spent
        if self.rank == 0:
            self.save()

    def _agree(self, seconds: float) -> float:
        """The mean over all processes, so that they change phases at the same step."""
        if self.processes == 1:
            return seconds
        shared = torch.tensor([seconds], dtype=torch.float64)
        distributed.all_reduce(shared)
        return shared.item() / self.processes

    def _average_gradients(self) -> None:
        if self.processes == 1:
            return
        parameters = list(self.model.parameters())
        for parameter in parameters:
            if parameter.grad is None:  # the unconditional text, where no picture lost its own
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
        distributed.all_reduce(flat)
        flat /= self.processes
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def _next_batch(self) -> Batch:
        """What the next step trains on."""
        ends = itertools.accumulate(phase.share for phase in self.settings.curriculum[:-1])
        phase = self.settings.curriculum[sum(self.progress >= end for end in ends)]
        batch = phase.batches[self.step % len(phase.batches)]
        return replace(batch, pictures=batch.pictures * self.settings.batch_factor)

    def _train_step(self, batch: Batch) -> Tensor:
        settings = self.settings
        chosen = self.random.integers(len(self.examples), size=batch.pictures)
        features = self.examples.features[torch.from_numpy(chosen)].to(self.device)
        weights = self.examples.objects[torch.from_numpy(chosen)].to(self.device).float()
        if batch.latent_frames is not None:
            features, weights = features[:, :, : batch.latent_frames], weights[:, : batch.latent_frames]
        weights = 1.0 + (settings.object_weight - 1.0) * weights
        prompts = [self.examples.write(self.random, index) for index in chosen]
        dropped = (self.random.random(batch.pictures) < settings.drop_text).tolist()
        flip = torch.from_numpy(self.random.random(batch.pictures)).float().to(self.device) * settings.flip
        rate = settings.learning_rate * self._rate()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        with mixed_precision(self.device):
            losses = self.model.losses(
                features, weights, prompts, dropped, batch.scales, flip, batch.share, settings.compiled
            )
        losses.mean().backward()
        self._average_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        update_ema(self.average, self.model, self.step, settings.average)
        return losses.detach()

    def _rate(self) -> float:
        """Learning rate as a share of its peak: warm-up, plateau, linear decay over the last 60 %."""
        warm = min(self.progress / self.settings.warmup, 1.0) if self.step else 0.0
        return max(warm * min((1.0 - self.progress) / 0.6, 1.0), 1e-3)

    def _log_entry(self, seen: list[tuple[int, Tensor]], seconds: float) -> dict[str, Any]:
        """What a line of the log says, besides the step and the time."""
        scales = max(len(losses) for _, losses in seen)
        means = [
            torch.stack([losses[scale] for _, losses in seen if len(losses) > scale]).mean().item()
            for scale in range(scales)
        ]
        entry = {
            "scales": scales,
            "pictures_per_second": round(self.processes * sum(count for count, _ in seen) / seconds, 1),
            "loss_per_scale": [round(value, 4) for value in means],
        }
        if self.rank == 0:
            self.append(entry)
        return entry
