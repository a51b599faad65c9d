"""StepVAR: structure-texture guided pruning of the late scales.

Source: "StepVAR: Structure-Texture Guided Pruning for Visual Autoregressive Models",
arXiv 2603.01757. What the paper leaves open is a field of `StepVAR`, and so are the rules that it is
compared with: any score goes with any recovery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.generation.plan import GenerationPlan, ScalePlan, in_stages
from stepvar.generation.pruner import Expect, LateScales, Pruner
from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import Tokens, gather_choice, gather_tokens, put_choice
from stepvar.pruning.guided import guided_gains
from stepvar.pruning.recovery import (
    anchor_positions,
    area_resized,
    bilinear,
    nearest_anchor,
    nearest_kept,
    rows_of,
)
from stepvar.pruning.scores import NORMALISATIONS, SCORERS, ScoringInput, make_scorer
from stepvar.pruning.selection import keep_highest

DENSE_SHARE = 3 / 32
"""Share of the layers that stay dense by default: FastVAR leaves 0 to 2 of Infinity-2B's 32."""

RECOVERIES = ("nearest", "anchor", "cache", "bilinear", "update", "guided")

VALUES = ("own", "copied", "expected")

ANCHOR_STRIDE = 3
"""Of the anchors that "anchor" copies, where no stride is given (StepVAR's baseline)."""


@dataclass(frozen=True)
class StepVAR(LateScales):
    """Prunes late scales to their structurally and texturally important tokens.

    Attributes:
        ratios: See `LateScales`. Speed grows with the ratio; fine detail in flat regions goes first,
            visible damage starts above 0.7 or so.
        skip, unguided: See `LateScales`.
        score: What makes a token important; see `stepvar.pruning.scores.SCORERS`.
        recovery: How pruned positions get their features after the last layer:
            "nearest" copies the nearest kept token (the paper's);
            "anchor" copies the nearest of a uniform grid of anchors, which are always kept;
            "cache" takes the features of the last scale that ran in full, interpolated by area;
            "bilinear" averages the kept tokens next to it, and copies the nearest where there are none;
            "update" goes on with its own features, and adds what the nearest kept token has gained;
            "guided" adds what the kept tokens near it gained, those most that it resembled before.
        anchor_stride: Distance of tokens on a uniform grid that are always kept, under any recovery;
            None for none, with "anchor" for 3.
        values: What pruned positions draw from the recovered features:
            "own" values, with noise of their own (the paper's);
            "copied" takes the values drawn at the token they copy: no fresh noise in flat regions;
            "expected" takes the mean of what could be drawn, so that a position adds little where its
            features leave its values open.
        stages: Narrowings per scale, spread evenly over the layers, each by an equal share; 1 narrows at
            once. More stages lose less, and save less.
        structure_weight: Weight of structure against texture in the fused score, 0..1. Free.
        normalisation: How the two scores are made comparable: "minmax", "rank" or "deviation".
        kernel: Side of the texture score's average pool, in tokens, odd. Nearly free.
        iterations: Power iterations of the structure score; each reads the features twice. Five pick
            more than 99 % of the tokens that an exact decomposition picks.
        first_layer: First layer that runs on kept tokens only. Earlier is faster and scores
            rougher features; by default 3/32 of the depth stay dense, at least one layer.
        dense_end: Layers at the end that run in full again, on recovered features: each costs as much as a
            dense layer, and lets pruned positions tell themselves from what they copied.
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
    recovery: str = "nearest"
    anchor_stride: int | None = None
    values: str = "own"
    stages: int = 1
    dense_end: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, name, known in (
            ("score", self.score, SCORERS),
            ("normalisation", self.normalisation, NORMALISATIONS),
            ("recovery", self.recovery, RECOVERIES),
            ("kind of values", self.values, VALUES),
        ):
            if name not in known:
                raise ValueError(f"Unknown {kind} {name!r}; known are {', '.join(known)}.")
        if not 0.0 <= self.structure_weight <= 1.0:
            raise ValueError(f"structure_weight is {self.structure_weight:g}; it must lie in 0..1.")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be an odd number of tokens, 3 or more.")
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; the power iteration needs at least one.")
        if self.frame_distance < 1:
            raise ValueError(f"frame_distance is {self.frame_distance}; it must be 1 or more token sides.")
        if self.anchor_stride is None and self.recovery == "anchor":
            object.__setattr__(self, "anchor_stride", ANCHOR_STRIDE)
        if self.anchor_stride is not None and self.anchor_stride < 2:
            raise ValueError(f"anchor_stride is {self.anchor_stride}; it must be 2 or more tokens.")
        if self.values == "copied" and self.recovery == "cache":
            raise ValueError("Copied values need a token to copy from, which recovery 'cache' has not.")
        if self.stages < 1:
            raise ValueError(f"stages is {self.stages}; tokens are narrowed at least once.")
        if self.dense_end < 0:
            raise ValueError(f"dense_end is {self.dense_end}; it is a number of layers, 0 or more.")

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """Fixes kept counts and skips on a schedule, for a model of `depth` layers."""
        first = self.first_layer
        if first is None:
            first = max(round(DENSE_SHARE * depth), 1)
        if self.dense_end and self.dense_end >= depth - first:
            raise ValueError(
                f"With first_layer {first} and dense_end {self.dense_end} no layer of {depth} is pruned: "
                f"dense_end may be 0 to {max(depth - first - 1, 0)}."
            )
        plan = in_stages(self.resolve(schedule, depth, first, depth - self.dense_end), self.stages)
        running = next((entry for entry in plan.scales if not entry.skipped), None)
        if self.recovery == "cache" and running is not None and running.prunes:
            raise ValueError(
                f"Scale {running.scale} cannot be pruned with recovery='cache': no scale before it runs in "
                "full."
            )
        for entry in plan.scales:
            if self.anchor_stride is None or not entry.prunes:
                continue
            anchors = len(anchor_positions(entry.scale.grid, self.anchor_stride))
            if anchors > entry.kept:
                raise ValueError(
                    f"Scale {entry.scale} keeps {entry.kept} of {entry.scale.tokens} tokens, but has "
                    f"{anchors} anchors {self.anchor_stride} tokens apart: lower its ratio, or raise "
                    "anchor_stride."
                )
        return plan

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return StepVARPruner(self, plan, device)


class StepVARPruner(Pruner):
    """Narrows each pruned scale, and recovers after the last narrowed layer."""

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
        self.cached: tuple[ScalePlan, Tensor] | None = None
        self.index: Tensor | None = None

    @property
    def kept_index(self) -> Tensor | None:
        return self.index

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.entry, self.images = entry, images
        self.latents = (self.latents[1], latent)
        self.index = self.scores = self.base = self.slots = self.full = None

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        if layer == self.plan.depth - self.config.dense_end:
            return self.widened(tokens, hidden)
        if not self.entry.narrows(layer):
            return tokens, hidden
        if self.scores is None:
            self.scores, self.full = self.score(tokens, hidden), tokens
        if self.config.recovery in ("update", "guided"):
            self.base = self.recovered(tokens, hidden)
        # Of the living tokens those with the highest scores, as positions among the living.
        living = self.scores if self.index is None else self.scores.gather(1, self.index)
        chosen = keep_highest(living, self.entry.tokens(layer))
        self.index = chosen if self.index is None else self.index.gather(1, chosen)
        rows = self.every_row(chosen, hidden)
        return tokens.narrow(rows), gather_tokens(hidden, rows)

    def score(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Scores [B, N] of all tokens, anchors above everything."""
        previous, current = self.latents
        inputs = ScoringInput(
            # Guidance mixes the copies position by position, so they must keep the same tokens;
            # the conditional copy is the one that knows the prompt.
            features=hidden[: self.images],
            grid=tokens.scale.grid,
            maps=(previous, current),
            generator=self.generator,
        )
        scores = self.scorer(inputs)
        if self.config.anchor_stride is not None:
            anchors = anchor_positions(tokens.scale.grid, self.config.anchor_stride)
            scores = scores.clone()
            scores[:, anchors] = torch.inf
        return scores

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        return hidden if self.config.dense_end else self.widened(tokens, hidden)[1]

    def widened(self, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        """All tokens of the scale, and their hidden states [R, N, C]."""
        if self.index is not None:
            return self.full, self.recovered(tokens, hidden)
        if self.config.recovery == "cache" and self.plan.prunes:
            # Without what a model has before a map, a prompt's tokens for example.
            self.cached = (self.entry, hidden[:, -self.entry.scale.tokens :])
        return tokens, hidden

    def recovered(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Hidden states [R, N, C] of all positions; those given while all are alive."""
        if self.index is None:
            return hidden
        index, grid = self.every_row(self.index, hidden), tokens.scale.grid
        if self.config.recovery == "cache":
            return self.from_cache(index, hidden)
        self.slots = self.copied_slots(tokens)
        slots = self.every_row(self.slots, hidden)
        if self.config.recovery == "bilinear":
            return bilinear(hidden, index, slots, grid)
        if self.base is None:
            return gather_tokens(hidden, slots)
        gains = hidden - gather_tokens(self.base, index)
        if self.config.recovery == "guided":
            return self.base + guided_gains(self.base, gains, index, slots, grid)
        return self.base + gather_tokens(gains, slots)

    def copied_slots(self, tokens: Tokens) -> Tensor:
        """Which kept token each position copies, [B, N]."""
        grid, distance = tokens.scale.grid, self.config.frame_distance
        if self.config.recovery == "anchor":
            return nearest_anchor(self.index, grid, self.config.anchor_stride, distance)
        return nearest_kept(self.index, grid, distance)

    def from_cache(self, index: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states [R, N, C]: the kept ones, and those of the last full scale elsewhere."""
        entry, cached = self.cached
        dense = area_resized(rows_of(cached, len(hidden)), entry.scale.grid, self.entry.scale.grid)
        dense = dense.contiguous()
        return dense.scatter_(1, index.unsqueeze(-1).expand_as(hidden), hidden)

    def settle(self, tokens: Tokens, choice: Any, expect: Expect) -> Any:
        if self.index is None or self.config.values == "own":
            return choice
        if self.config.values == "copied":
            return gather_choice(choice, self.index.gather(1, self.slots))
        return put_choice(expect(), self.index, choice)

    def every_row(self, index: Tensor, hidden: Tensor) -> Tensor:
        """[B, ...] repeated for all copies of the images."""
        return index.repeat(hidden.shape[0] // self.images, 1)
