"""Probes that measure a dense run, or disturb it, through the contract of a pruning method.

They narrow nothing. A pipeline refuses a method that names no scale, so each names the scales it touches,
with a ratio of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.plan import GenerationPlan, ScalePlan, find_scale
from stepvar.generation.pruner import Pruner
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.pruning.scores import structure_scores


@dataclass(frozen=True)
class Perturbation:
    """Adds Gaussian noise to what one scale's logits are computed from (StepVAR, figure 1b).

    Attributes:
        scale: Which scale, as in `StepVAR.ratios`.
        strength: Standard deviation of the noise, in standard deviations of the hidden states.
        seed: Of the noise.
    """

    scale: int
    strength: float = 1.0
    seed: int = 0

    @property
    def ratios(self) -> Mapping[int, float]:
        return {self.scale: 0.0}

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        find_scale(schedule, self.scale)
        return GenerationPlan.dense(schedule, depth)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return _Perturber(self, plan, device)


class _Perturber(Pruner):
    def __init__(self, config: Perturbation, plan: GenerationPlan, device: torch.device) -> None:
        super().__init__(plan)
        scales = [entry.scale for entry in plan.scales]
        self.target = find_scale(ScaleSchedule(tuple(scales)), config.scale)
        self.strength = config.strength
        self.generator = torch.Generator(device).manual_seed(config.seed)

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        if tokens.scale.index != self.target:
            return hidden
        # One noise for all rows: the copies of guidance are disturbed alike, and a batch equals single runs.
        noise = torch.randn(
            1, *hidden.shape[1:], generator=self.generator, device=hidden.device, dtype=hidden.dtype
        )
        deviation = hidden.flatten(1).std(dim=1).view(-1, 1, 1)
        return hidden + self.strength * deviation * noise


ResidualCallback = Callable[[int, Scale, Tensor, Tensor], None]
"""Receives layer, scale, residual energy [B, N] and |projection| [B, N] of the conditional copies."""


@dataclass(frozen=True)
class ResidualProbe:
    """Measures what every layer adds, and the projection of its input on the principal component (figure 3).

    Attributes:
        callback: Called for every layer of every scale.
        seed: Of the power iteration.
    """

    callback: ResidualCallback
    seed: int = 0

    @property
    def ratios(self) -> Mapping[int, float]:
        return {-1: 0.0}

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        return GenerationPlan.dense(schedule, depth)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return _ResidualProber(self, plan, device)


class _ResidualProber(Pruner):
    def __init__(self, config: ResidualProbe, plan: GenerationPlan, device: torch.device) -> None:
        super().__init__(plan)
        self.callback = config.callback
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.images = 0
        self.before: Tensor | None = None

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.images, self.before = images, None

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        self._report(layer - 1, tokens, hidden)
        return tokens, hidden

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        self._report(self.plan.depth - 1, tokens, hidden)
        return hidden

    def _report(self, layer: int, tokens: Tokens, after: Tensor) -> None:
        conditional = after[: self.images].float()
        if self.before is not None:
            energy = (conditional - self.before).square().mean(dim=-1)
            projection = structure_scores(self.before, iterations=5, generator=self.generator)
            self.callback(layer, tokens.scale, energy, projection)
        self.before = conditional
