"""StepVAR: structure-texture guided pruning of the late scales.

Source: "StepVAR: Structure-Texture Guided Pruning for Visual Autoregressive Models",
arXiv 2603.01757. What the paper leaves open is a field of `StepVAR`, and so are the rules that it is
compared with: any score goes with any recovery.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepvar.generation.frozen import FrozenMapping
from stepvar.generation.plan import GenerationPlan, ScalePlan, in_stages
from stepvar.generation.pruner import Expect, LateScalePruning, Pruner
from stepvar.generation.randomness import seeded_generator
from stepvar.generation.schedule import Grid, ScaleSchedule
from stepvar.generation.tokens import Choice, Tokens, gather_choice, gather_tokens, put_choice
from stepvar.pruning.interpolation import anchor_positions, match_rows, nearest_kept, slots_of
from stepvar.pruning.recovery import RECOVERIES, KeptTokens, Recovery, make_recovery, needs
from stepvar.pruning.scores import (
    NORMALISATIONS,
    SCORERS,
    BoundScorer,
    Scorer,
    ScoringInput,
    make_scorer,
    option_names,
)
from stepvar.pruning.selection import keep_highest

DENSE_SHARE = 3 / 32
"""Share of the layers that stay dense by default: FastVAR leaves 0 to 2 of Infinity-2B's 32."""

VALUES = ("own", "copied", "expected")

_MISTAKES = (TypeError, AttributeError, NameError, LookupError, ArithmeticError)
"""What a mistake in a function raises, other than what a device does for want of memory."""

_LARGEST_KERNEL, _MOST_ITERATIONS = 255, 1_000
"""Tokens, larger than any map's side; and steps, of which the published plan has 5."""

ANCHOR_STRIDE = 3
"""Of the anchors that a recovery copies, where no stride is given (StepVAR's baseline)."""

SCORE_FIELDS = ("structure_weight", "normalisation", "kernel", "iterations")
"""Fields of `StepVAR` that a score gets as options of the same name."""


@dataclass(frozen=True)
class StepVAR(LateScalePruning):
    """Prunes late scales to their structurally and texturally important tokens.

    Attributes:
        ratios: See `LateScalePruning`. Speed grows with the ratio; fine detail in flat regions goes first,
            visible damage starts above 0.7 or so.
        skip, unguided: See `LateScalePruning`.
        score: What makes a token important: a name of `stepvar.pruning.scores.SCORERS`, or a function
            (tokens: ScoringInput, **options) -> [B, N].
        recovery: How pruned positions get their hidden states after the last layer: a name of
            `stepvar.pruning.recovery.RECOVERIES`, or an object of such a class:
            "nearest" copies the nearest kept token (the paper's);
            "anchor" copies the nearest of a uniform grid of anchors, which are always kept;
            "cache" takes the features of the last scale that ran in full, interpolated by area;
            "bilinear" averages the kept tokens next to it, and copies the nearest where there are none;
            "update" keeps its own features, and adds what the nearest kept token has gained;
            "guided" adds what the kept tokens near it gained, most of those that it resembled before;
            "calibrated" predicts them by maps that were fitted to the model, and so is an object.
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
            dense layer, and lets pruned positions differ from what they copied.
        frame_distance: Distance of two frames in token sides, for the recovery of video.
        seed: Seed of the method's own random numbers; sampling never sees them.
        score_options: Further options of the score, by name.

    Raises:
        ValueError: When a field is out of range, or a rule is unknown or none.
    """

    score: str | Scorer = "structure+texture"
    structure_weight: float = 0.5
    normalisation: str = "minmax"
    kernel: int = 3
    iterations: int = 5
    first_layer: int | None = None
    frame_distance: int = 1
    seed: int = 0
    recovery: str | Recovery = "nearest"
    anchor_stride: int | None = None
    values: str = "own"
    stages: int = 1
    dense_end: int = 0
    score_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._resolve_rules()
        for kind, name, known in (
            ("normalisation", self.normalisation, NORMALISATIONS),
            ("kind of values", self.values, VALUES),
        ):
            if name not in known:
                raise ValueError(f"Unknown {kind} {name!r}; known are {', '.join(known)}.")
        if not 0.0 <= self.structure_weight <= 1.0:
            raise ValueError(f"structure_weight is {self.structure_weight:g}; it must lie in 0..1.")
        if not 3 <= self.kernel <= _LARGEST_KERNEL or self.kernel % 2 == 0:
            raise ValueError(
                f"kernel is {self.kernel}; it must be an odd number of tokens, 3 to {_LARGEST_KERNEL}."
            )
        if not 1 <= self.iterations <= _MOST_ITERATIONS:
            raise ValueError(
                f"iterations is {self.iterations}; the power iteration needs 1 to {_MOST_ITERATIONS}."
            )
        if self.frame_distance < 1:
            raise ValueError(f"frame_distance is {self.frame_distance}; it must be 1 or more token sides.")
        if self.anchor_stride is not None and self.anchor_stride < 2:
            raise ValueError(f"anchor_stride is {self.anchor_stride}; it must be 2 or more tokens.")
        if self.stages < 1:
            raise ValueError(f"stages is {self.stages}; tokens are narrowed at least once.")
        if self.dense_end < 0:
            raise ValueError(f"dense_end is {self.dense_end}; it is a number of layers, 0 or more.")

    def _resolve_rules(self) -> None:
        """Checks score and recovery; puts names in place of registered ones, so that equals compare equal."""
        object.__setattr__(self, "score", SCORERS.name_or_rule(self.score))
        object.__setattr__(self, "recovery", RECOVERIES.name_or_rule(self.recovery))
        object.__setattr__(self, "score_options", FrozenMapping(self.score_options))
        taken = option_names(self.score, self.score_options)
        for name in self.score_options:
            if name in SCORE_FIELDS:
                raise ValueError(f"score_options holds {name!r}, which is a field: pass {name}=... instead.")
            if name not in taken:
                raise ValueError(f"Score {SCORERS.name_of(self.score)!r} takes no option {name!r}.")
        recovery = make_recovery(self.recovery)
        if self.anchor_stride is None and needs(recovery, "anchors"):
            object.__setattr__(self, "anchor_stride", ANCHOR_STRIDE)
        if self.values == "copied" and not getattr(recovery, "copies", True):
            name = RECOVERIES.name_of(self.recovery)
            raise ValueError(f"Copied values need a token to copy from, which recovery {name!r} has not.")

    def __repr__(self) -> str:
        """The fields that differ from their defaults, rules by name."""
        shown = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            if value != default:
                named = SCORERS.name_of(value) if entry.name == "score" and callable(value) else repr(value)
                shown.append(f"{entry.name}={named}")
        return f"StepVAR({', '.join(shown)})"

    def settings(self) -> dict[str, Any]:
        """The fields by name, with the names of rules; settings of a recovery with its name."""
        shown = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        shown["score"] = SCORERS.name_of(self.score)
        shown["recovery"] = RECOVERIES.name_of(self.recovery)
        own = getattr(self.recovery, "settings", None)
        if callable(own):
            shown["recovery"] = {"name": shown["recovery"], **own()}
        elif is_dataclass(self.recovery):
            values = {entry.name: getattr(self.recovery, entry.name) for entry in fields(self.recovery)}
            shown["recovery"] = {"name": shown["recovery"], **values}
        return shown

    def make_scorer(self) -> BoundScorer:
        """The score with its options."""
        options = {name: getattr(self, name) for name in SCORE_FIELDS}
        return make_scorer(self.score, **options, **self.score_options)

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
        recovery = make_recovery(self.recovery)
        if (check := getattr(recovery, "check", None)) is not None:
            check(plan)
        running = next((entry for entry in plan.scales if not entry.skipped), None)
        needs_full_scale = needs(recovery, "full_scale")
        if needs_full_scale and running is not None and running.prunes:
            raise ValueError(
                f"Scale {running.scale} cannot be pruned with "
                f"recovery={RECOVERIES.name_of(self.recovery)!r}: no scale before it runs in full."
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
        return replace(plan, fitted_to=getattr(recovery, "fitted_to", None))

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return StepVARPruner(self, plan, device)


@dataclass
class Narrowed:
    """A scale once its tokens were narrowed.

    Attributes:
        tokens: The tokens before: all of the scale, or what a method around this one left of them.
        scores: [B, N] scores of all positions, -inf of those that were gone.
        index: [B, K] positions of those that are still computed.
        entry: What the recovery's `before` returned at the last narrowing.
        kept: What was recovered from last.
    """

    tokens: Tokens
    scores: Tensor
    index: Tensor
    entry: Any = None
    kept: KeptTokens | None = None


@dataclass
class ScaleState:
    """The scale at work.

    Attributes:
        entry: Its plan.
        images: B; the first B rows of hidden states are the conditional copies.
        maps: Accumulated codes before the previous scale and before this one.
        narrowed: None while all tokens are computed.
    """

    entry: ScalePlan
    images: int
    maps: tuple[Tensor | None, Tensor]
    narrowed: Narrowed | None = None


class StepVARPruner(Pruner):
    """Narrows each pruned scale to its highest scores, and recovers after the last narrowed layer."""

    state: ScaleState

    def __init__(self, config: StepVAR, plan: GenerationPlan, device: torch.device) -> None:
        super().__init__(plan)
        self.config = config
        self.scorer = config.make_scorer()
        recovery = make_recovery(config.recovery)
        placed = getattr(recovery, "on", None)
        self.recovery = recovery if placed is None else placed(device)
        # On the features' device, so that no score waits for a copy from the host.
        self.generator = seeded_generator(config.seed, device)
        self.latent: Tensor | None = None
        self.full_scale: tuple[Grid, Tensor] | None = None

    @property
    def kept_index(self) -> Tensor | None:
        return None if self.state.narrowed is None else self.state.narrowed.index

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.state = ScaleState(entry, images, (self.latent, latent))
        self.latent = latent

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        if layer == self.plan.depth - self.config.dense_end:
            return self.widen(tokens, hidden)
        entry = self.state.entry
        # A method around this one may have left as few tokens as this one keeps.
        if entry.narrows(layer) and (tokens.index is None or entry.tokens(layer) < tokens.count):
            return self.narrow(layer, tokens, hidden)
        return tokens, hidden

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        return hidden if self.config.dense_end else self.widen(tokens, hidden)[1]

    def settle(self, tokens: Tokens, choice: Choice, expect: Expect) -> Choice:
        narrowed = self.state.narrowed
        if narrowed is None or self.config.values == "own":
            return choice
        if self.config.values == "expected":
            return put_choice(expect(), narrowed.index, choice)
        assert narrowed.kept is not None, "values are settled after the recovery"
        sources = narrowed.kept.sources[: self.state.images]
        return gather_choice(choice, narrowed.index.gather(1, sources))

    def narrow(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        """Keeps the highest scores of the tokens that are still computed, as many as the plan says."""
        narrowed, count = self.state.narrowed, self.state.entry.tokens(layer)
        entry = self.before(tokens, hidden)
        if narrowed is None:
            scores = self.score(tokens, self.whole_map(tokens, hidden))
            chosen = keep_highest(scores, count)
            self.state.narrowed = Narrowed(tokens, scores, chosen, entry)
            if tokens.index is not None:
                chosen = slots_of(tokens.index[: self.state.images], tokens.scale.tokens).gather(1, chosen)
        else:
            chosen = keep_highest(narrowed.scores.gather(1, narrowed.index), count)
            index = narrowed.index.gather(1, chosen)
            self.state.narrowed = Narrowed(narrowed.tokens, narrowed.scores, index, entry)
        rows = self.for_all_rows(chosen, hidden)
        return tokens.narrow(rows), gather_tokens(hidden, rows)

    def whole_map(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Hidden states of all positions, [R, N, C]: those that are gone already copy the nearest token."""
        if tokens.index is None:
            return hidden
        sources = nearest_kept(tokens.index[: self.state.images], tokens.scale.grid)
        return gather_tokens(hidden, self.for_all_rows(sources, hidden))

    def before(self, tokens: Tokens, hidden: Tensor) -> Any:
        """What the recovery takes down of all tokens before a narrowing; None where it has no `before`."""
        before = getattr(self.recovery, "before", None)
        if before is None:
            return None
        narrowed = self.state.narrowed
        features = self.whole_map(tokens, hidden) if narrowed is None else self.recover(narrowed, hidden)
        return before(features, tokens.scale.grid)

    def score(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Scores [B, N] of all positions, anchors above everything, and positions that are gone below it."""
        images = self.state.images
        guided = len(hidden) > images
        inputs = ScoringInput(
            # Guidance mixes the copies position by position, so they must keep the same tokens;
            # the conditional copy is the one that knows the prompt.
            features=hidden[:images],
            grid=tokens.scale.grid,
            maps=self.state.maps,
            generator=self.generator,
            unconditional=hidden[images:] if guided else None,
        )
        try:
            scores = self.scorer(inputs)
        except _MISTAKES as error:
            # A score may be anyone's function, also one that was never meant to be a score.
            raise ValueError(
                f"The score {SCORERS.name_of(self.config.score)!r} failed on its tokens: "
                f"{type(error).__name__}: {error}"
            ) from error
        expected = (images, tokens.scale.tokens)
        if not isinstance(scores, Tensor) or scores.shape != expected:
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"Score {SCORERS.name_of(self.config.score)!r} returned {found}; it must return one number a "
                f"token, a tensor of shape {expected}."
            )
        scores = scores.float()
        if self.config.anchor_stride is not None:
            anchors = anchor_positions(tokens.scale.grid, self.config.anchor_stride)
            scores = scores.clone()
            scores[:, anchors] = torch.inf
        if tokens.index is not None:
            living = slots_of(tokens.index[:images], tokens.scale.tokens) >= 0
            scores = scores.masked_fill(~living, -torch.inf)
        return scores

    def widen(self, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        """All tokens that entered the first layer, and their hidden states [R, N, C]."""
        state = self.state
        if state.narrowed is not None:
            before, recovered = state.narrowed.tokens, self.recover(state.narrowed, hidden)
            return before, recovered if before.index is None else gather_tokens(recovered, before.index)
        if needs(self.recovery, "full_scale") and self.plan.prunes and tokens.index is None:
            # Without what a model has before a map, a prompt's tokens for example.
            scale = state.entry.scale
            self.full_scale = (scale.grid, hidden[:, -scale.tokens :])
        return tokens, hidden

    def recover(self, narrowed: Narrowed, hidden: Tensor) -> Tensor:
        """Hidden states [R, N, C] of all positions from those of the kept tokens, [R, K, C]."""
        scale, full_scale = narrowed.tokens.scale, None
        if self.full_scale is not None:
            grid, features = self.full_scale
            full_scale = grid, match_rows(features, len(hidden), self.plan.remaining)
        kept = narrowed.kept = KeptTokens(
            features=hidden,
            index=self.for_all_rows(narrowed.index, hidden),
            grid=scale.grid,
            images=self.state.images,
            frame_distance=self.config.frame_distance,
            anchor_stride=self.config.anchor_stride if needs(self.recovery, "anchors") else None,
            entry=narrowed.entry,
            full_scale=full_scale,
        )
        recovered = self.recovery.after(kept)
        expected = (len(hidden), scale.tokens, hidden.shape[2])
        if recovered.shape != expected:
            name = RECOVERIES.name_of(self.config.recovery)
            raise ValueError(
                f"Recovery {name!r} returned {tuple(recovered.shape)}; it must return the hidden states of "
                f"all positions, {expected}."
            )
        return recovered

    def for_all_rows(self, index: Tensor, hidden: Tensor) -> Tensor:
        """[B, ...] repeated for all copies of the images."""
        return index.repeat(hidden.shape[0] // self.state.images, 1)
