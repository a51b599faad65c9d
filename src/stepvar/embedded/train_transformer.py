"""Training of the embedded transformer, with its text encoder, on encoded scenes.

A curriculum from coarse to fine scales: coarse ones carry the meaning and cost little, fine ones
hold hundreds of tokens each and need few pictures. Bits of the inputs are flipped and the targets
re-quantised, so that the model learns to repair its own mistakes (Infinity's self-correction).
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stepvar.embedded.architecture import (
    GRIDS,
    build_text_encoder,
    build_transformer,
    build_word_tokenizer,
)
from stepvar.embedded.features import FeatureStore
from stepvar.embedded.scenes import write
from stepvar.models.infinity.quantizer import quantize_multiscale
from stepvar.models.infinity.training import bit_losses, initialise, teacher_forced_logits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransformerTraining:
    """Settings of a run.

    Attributes:
        minutes: Time budget; the learning rate follows it to zero.
        curriculum: (share of the budget, scales, pictures a step) phases, in order.
        learning_rate: Peak, of AdamW; Muon's is matched to it.
        flip: Largest share of flipped bits; each picture draws its own share below it.
        drop_text: Share of the pictures trained without their text, for guidance.
        average: Decay per step of the averaged weights that are shipped.
        checkpoint_minutes: Time between checkpoints.
        seed: Of the order, the words, the flips and the initial weights.
    """

    minutes: float = 70.0
    curriculum: tuple[tuple[float, int, int], ...] = ((0.50, 6, 64), (0.22, 7, 32), (0.28, 9, 12))
    learning_rate: float = 1.5e-3
    warmup: float = 0.02
    flip: float = 0.25
    drop_text: float = 0.1
    average: float = 0.998
    checkpoint_minutes: float = 3.0
    seed: int = 0


class EmbeddedModel(nn.Module):
    """Transformer and text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.words = build_word_tokenizer()
        self.text_encoder = build_text_encoder(len(self.words))
        self.transformer = build_transformer()
        initialise(self.transformer)

    def start_from(self, folder: Path) -> None:
        """Takes the weights of a finished model, so that training goes on where it was packaged.

        Args:
            folder: What `stepvar.embedded.package.package` wrote.
        """
        from transformers import T5EncoderModel

        from stepvar.models.infinity.transformer import InfinityTransformer

        encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
        transformer = InfinityTransformer.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        self.text_encoder.load_state_dict(encoder.state_dict())
        self.transformer.load_state_dict(transformer.state_dict())

    def encode_text(self, prompts: Sequence[str], device: torch.device) -> list[Tensor]:
        """One [T_i, E] a prompt."""
        batch = self.words(list(prompts), padding=True, return_tensors="pt").to(device)
        states = self.text_encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        lengths = batch.attention_mask.sum(dim=1).tolist()
        return [state[:length] for state, length in zip(states, lengths, strict=True)]

    def losses(
        self, features: Tensor, prompts: Sequence[str], dropped: Sequence[bool], scales: int, flip: Tensor
    ) -> Tensor:
        """Cross entropy per bit of the first `scales` scales, in nats.

        Args:
            features: [B, d, H, W] encoder features.
            prompts: B prompts.
            dropped: Which pictures are trained without their text.
            scales: Scales to run.
            flip: [B] share of flipped bits of each picture.
        """
        with torch.no_grad():
            code = quantize_multiscale(features.float(), GRIDS, flip)
        text = self.encode_text(prompts, features.device)
        for index, drop in enumerate(dropped):
            if drop:
                text[index] = self.transformer.unconditional_text[: len(text[index])].to(text[index].dtype)
        schedule = self.transformer.size_table.schedule(1.0, "192x192")
        logits = teacher_forced_logits(self.transformer, text, code.teacher_inputs[: scales - 1], schedule)
        return bit_losses(logits, [bits.flatten(1, 2) for bits in code.bits[:scales]])


def build_optimisers(model: EmbeddedModel, settings: TransformerTraining) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    matrices = [p for p in model.transformer.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    decay = [p for p in rest if p.dim() >= 2]
    plain = [p for p in rest if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    rate = settings.learning_rate
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.97)),
    ]


class TransformerTrainer:
    """Runs, logs, checkpoints and resumes the training.

    Args:
        store: Encoded scenes.
        folder: Checkpoints and log.
        settings: See `TransformerTraining`.
        device: Where to train.
        start: A finished model to start from instead of fresh weights.
    """

    def __init__(
        self,
        store: FeatureStore,
        folder: Path,
        settings: TransformerTraining,
        device: torch.device,
        start: Path | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.store, self.folder, self.settings, self.device = store, folder, settings, device
        self.model = EmbeddedModel().to(device)
        if start is not None:
            self.model.start_from(start)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimisers = build_optimisers(self.model, settings)
        self.random = np.random.default_rng(settings.seed)
        self.step, self.spent = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def progress(self) -> float:
        """Share of the time budget that is spent."""
        return min(self.spent / (60.0 * self.settings.minutes), 1.0)

    def run(self) -> Iterable[dict[str, float | list[float] | int]]:
        """Trains until the budget is spent; yields a log entry now and then."""
        last_log = last_save = self.spent
        seen: list[tuple[int, Tensor]] = []
        while self.progress < 1.0:
            started = time.perf_counter()
            scales, pictures = self._phase()
            seen.append((pictures, self._train_step(scales, pictures)))
            self.spent += time.perf_counter() - started
            if self.step % 25 == 0:
                entry = self._log_entry(scales, seen, self.spent - last_log)
                last_log, seen = self.spent, []
                yield entry
            if self.spent - last_save > 60.0 * self.settings.checkpoint_minutes:
                self.save()
                last_save = self.spent
        self.save()

    def _phase(self) -> tuple[int, int]:
        edge = 0.0
        for share, scales, pictures in self.settings.curriculum[:-1]:
            edge += share
            if self.progress < edge:
                return scales, pictures
        return self.settings.curriculum[-1][1:]

    def _train_step(self, scales: int, pictures: int) -> Tensor:
        settings = self.settings
        chosen = self.random.integers(len(self.store), size=pictures)
        features = self.store.features[torch.from_numpy(chosen)].to(self.device)
        prompts = [write(self.random, self.store.specs[index]) for index in chosen]
        dropped = (self.random.random(pictures) < settings.drop_text).tolist()
        flip = torch.from_numpy(self.random.random(pictures)).float().to(self.device) * settings.flip
        rate = settings.learning_rate * self._rate()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        with self._autocast():
            losses = self.model.losses(features, prompts, dropped, scales, flip)
        losses.mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self._update_average()
        return losses.detach()

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _rate(self) -> float:
        """Learning rate as a share of its peak: warm-up, plateau, linear decay over the last 60 %."""
        warm = min(self.progress / self.settings.warmup, 1.0) if self.step else 0.0
        return max(warm * min((1.0 - self.progress) / 0.6, 1.0), 1e-3)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.average, self.step / (self.step + 10.0))
        old, new = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(old, new, 1.0 - decay)

    def _log_entry(
        self, scales: int, seen: list[tuple[int, Tensor]], seconds: float
    ) -> dict[str, float | list[float] | int]:
        losses = torch.stack([entry for _, entry in seen if len(entry) == scales]).mean(dim=0)
        entry = {
            "step": self.step,
            "minutes": round(self.spent / 60.0, 2),
            "scales": scales,
            "pictures_per_second": round(sum(count for count, _ in seen) / max(seconds, 1e-9), 1),
            "loss_per_scale": [round(value, 4) for value in losses.tolist()],
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        return entry

    def save(self) -> None:
        """Writes a checkpoint; the previous one is replaced only when the new one is whole."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "spent": self.spent,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.spent = state["step"], state["spent"]
        self.random = np.random.default_rng([self.settings.seed, self.step])
        logger.info("resumed at step %d, %.1f minutes in", self.step, self.spent / 60.0)
