"""StepVAR: structure-texture guided pruning of the late scales.

Source: "StepVAR: Structure-Texture Guided Pruning for Visual Autoregressive Models",
arXiv 2603.01757. What the paper leaves open is a field of `StepVAR`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import Tokens, gather_tokens
from stepvar.pruning.base import LateScales, Pruner
from stepvar.pruning.plan import GenerationPlan, ScalePlan
from stepvar.pruning.recovery import nearest_kept
from stepvar.pruning.scores import NORMALISATIONS, SCORERS, ScoringInput, make_scorer
from stepvar.pruning.selection import keep_highest

DENSE_SHARE = 3 / 32
"""Share of the layers that stay dense by default: FastVAR leaves 0 to 2 of Infinity-2B's 32."""


@dataclass(frozen=True)
class StepVAR(LateScales):
    """Prunes late scales to their structurally and texturally important tokens.

    Scales are named by their height in tokens (`24`), or from the end (`-1` is the last).

    Attributes:
        ratios: Share of tokens to prune, by scale. Speed grows with the ratio; fine detail in
            flat regions goes first, visible damage starts above 0.7 or so. A ratio of 1 skips.
        skip: Scales not run at all: the largest gain, and what they would have drawn is missing.
        score: What makes a token important; see `stepvar.pruning.scores.SCORERS`.
        structure_weight: Weight of structure against texture in the fused score, 0..1. Free.
        normalisation: How the two scores are made comparable: "minmax", "rank" or "deviation".
        kernel: Side of the texture score's average pool, in tokens, odd. Nearly free.
        iterations: Power iterations of the structure score; each reads the features twice. Five pick
            more than 99 % of the tokens that an exact decomposition picks.
        first_layer: First layer that runs on kept tokens only. Earlier is faster and scores
            rougher features; by default 3/32 of the depth stay dense, at least one layer.
        frame_distance: Distance of two frames in token sides, for the recovery of video.
        seed: Seed of the method's own random numbers; sampling never sees them.

    Raises:
        ValueError: When a field is out of range.
    """

    score: str = "structure+texture"
    structure_weight: float = 0.5
    normalisation: str = "minmax"
    kernel: int = 3
    iterations: int = 5
    first_layer: int | None = None
    frame_distance: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in SCORERS:
            raise ValueError(f"Unknown score {self.score!r}; known are {', '.join(SCORERS)}.")
        if self.normalisation not in NORMALISATIONS:
            known = ", ".join(NORMALISATIONS)
            raise ValueError(f"Unknown normalisation {self.normalisation!r}; known are {known}.")
        if not 0.0 <= self.structure_weight <= 1.0:
            raise ValueError(f"structure_weight is {self.structure_weight:g}; it must lie in 0..1.")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be an odd number of tokens, 3 or more.")
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; the power iteration needs at least one.")
        if self.frame_distance < 1:
            raise ValueError(f"frame_distance is {self.frame_distance}; it must be 1 or more token sides.")

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """Fixes kept counts and skips on a schedule, for a model of `depth` layers."""
        first = self.first_layer
        if first is None:
            first = max(round(DENSE_SHARE * depth), 1)
        return self.resolve(schedule, depth, first, depth)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return StepVARPruner(self, plan, device)


class StepVARPruner(Pruner):
    """Narrows once per pruned scale, and recovers after the last layer."""

    def __init__(self, config: StepVAR, plan: GenerationPlan, device: torch.device) -> None:
        super().__init__(plan)
        self.config = config
        self.scorer = make_scorer(
            config.score,
            structure_weight=config.structure_weight,
            normalisation=config.normalisation,
            kernel=config.kernel,
            iterations=config.iterations,
        )
        # On the features' device, so that no score waits for a copy from the host.
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.latents: tuple[Tensor | None, Tensor | None] = (None, None)
        self.index: Tensor | None = None

    @property
    def kept_index(self) -> Tensor | None:
        return self.index

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.entry, self.images = entry, images
        self.latents = (self.latents[1], latent)
        self.index = None

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        if not self.entry.prunes or layer != self.entry.first_layer:
            return tokens, hidden
        previous, current = self.latents
        inputs = ScoringInput(
            # Guidance mixes the copies position by position, so they must keep the same tokens;
            # the conditional copy is the one that knows the prompt.
            features=hidden[: self.images],
            grid=tokens.scale.grid,
            maps=(previous, current),
            generator=self.generator,
        )
        self.index = keep_highest(self.scorer(inputs), self.entry.kept)
        rows = self.index.repeat(hidden.shape[0] // self.images, 1)
        return tokens.narrow(rows), gather_tokens(hidden, rows)

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        if self.index is None:
            return hidden
        nearest = nearest_kept(self.index, tokens.scale.grid, self.config.frame_distance)
        return gather_tokens(hidden, nearest.repeat(hidden.shape[0] // self.images, 1))
