"""Fit of the recovery "calibrated": linear maps to what a run without pruning computes.

Every prompt is drawn twice. The first run prunes no token, and its hidden states after the pruned layers and
its drawn values are noted down. The second one prunes as planned, but goes on from the values of the first,
so that at every scale both read the same picture so far; what it knows of its pruned tokens is paired with
what the first one computed there. Only sums of products are kept, so memory does not grow with prompts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.evaluation.plan_search import PROMPT_SEED, Advance
from stepvar.generation.plan import GenerationPlan, ScalePlan
from stepvar.generation.pruner import Expect, Pruner
from stepvar.generation.schedule import Grid, ScaleSchedule
from stepvar.generation.tokens import Choice, Tokens, gather_tokens
from stepvar.generation.weight_sketch import WeightSketch
from stepvar.pruning.calibrated import INPUTS, FittedMap, map_inputs, pruned_positions
from stepvar.pruning.recovery import Calibrated, KeptTokens, Update
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import StepVAR, StepVARPruner

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline

RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 30.0)
"""Strengths that are tried: squared weights count as much as this share of the tokens would."""

HELD_BACK = 4
"""Every fourth prompt chooses the strength."""


def fit_recovery(
    pipeline: NextScalePipeline,
    prompts: Sequence[Any],
    method: StepVAR,
    *,
    advance: Advance | None = None,
    settings: Mapping[str, Any] | None = None,
) -> StepVAR:
    """The plan with the recovery "calibrated", fitted to a model.

    Args:
        pipeline: The model; its weights are in memory.
        prompts: What to draw, four or more; numbers that are reported must come from others.
        method: The plan. Its recovery is replaced; its ratios, score and guidance are what is fitted for.
        advance: Called with the progress.
        settings: Keyword arguments of the pipeline: size, guidance and so on.

    Raises:
        ValueError: When the plan prunes nothing, or narrows in stages, or there are too few prompts.
    """
    if len(prompts) < HELD_BACK:
        raise ValueError(f"Fitting a recovery needs {HELD_BACK} prompts or more; there are {len(prompts)}.")
    if method.stages > 1:
        raise ValueError(f"A calibrated recovery is fitted for one narrowing, and stages is {method.stages}.")
    given = dict(settings or {})
    watched = replace(method, recovery=Update(), values="own")
    scales = pipeline.summary(watched, **given).plan.scales
    if not any(entry.prunes for entry in scales):
        raise ValueError("The plan prunes no tokens, so there is nothing to recover: give ratios.")
    # A ratio of 1 leaves a scale out, which no recovery could fill.
    ratios = {name: float(ratio == 1.0) for name, ratio in watched.ratios.items()}
    whole = replace(watched, ratios=ratios)
    record = Record({entry.scale.index for entry in scales if entry.prunes})
    for number, prompt in enumerate(prompts):
        record.held_back = number % HELD_BACK == 0
        for observed in (Observed(whole, _NotingPruner, record), Observed(watched, _PairingPruner, record)):
            pipeline([prompt], seed=[PROMPT_SEED + number], pruning=observed, output_type="latent", **given)
        if advance is not None:
            advance(1.0 / len(prompts), f"prompt {number + 1}")
    maps = _maps(record, {entry.scale.grid: entry for entry in scales})
    fitted_to = WeightSketch.of(pipeline.components["transformer"])
    return replace(method, recovery=Calibrated(maps, fitted_to, SCORERS.name_of(method.score)))


def _maps(record: Record, planned: Mapping[Grid, ScalePlan]) -> tuple[FittedMap, ...]:
    maps = []
    for grid, sums in record.sums.items():
        entry = planned[grid]
        ratio = round(1.0 - entry.kept / entry.scale.tokens, 6)
        weight, bias, error = solve(*sums)
        maps.append(FittedMap(grid, (entry.first_layer, entry.last_layer), ratio, error, weight, bias))
    return tuple(maps)


@dataclass
class ScaleSums:
    """Sums of products over the tokens of a scale, in float64.

    Attributes:
        inputs: [D + 1, D + 1] of inputs, the last of them always one, with each other.
        both: [D + 1, C] of inputs with what is to be predicted.
        squares: [] of what is to be predicted, summed over its channels.
    """

    inputs: Tensor
    both: Tensor
    squares: Tensor

    @classmethod
    def of(cls, inputs: Tensor, wanted: Tensor) -> ScaleSums:
        """Those of tokens [..., D] with what is to be predicted, [..., C]; on their device, if it can."""
        device = torch.device("cpu") if inputs.device.type == "mps" else inputs.device
        wide = functional.pad(inputs.flatten(0, -2).to(device, torch.float64), (0, 1), value=1.0)
        target = wanted.flatten(0, -2).to(device, torch.float64)
        return cls(wide.T @ wide, wide.T @ target, target.square().sum())

    def __add__(self, other: ScaleSums) -> ScaleSums:
        return ScaleSums(self.inputs + other.inputs, self.both + other.both, self.squares + other.squares)

    def cpu(self) -> ScaleSums:
        return ScaleSums(self.inputs.cpu(), self.both.cpu(), self.squares.cpu())


def solve(fitted: ScaleSums, held_back: ScaleSums) -> tuple[Tensor, Tensor, float]:
    """Weight [D, C], bias [C] and relative error of a map from the state before the layers to that after.

    The strength is the one with the least error on what was held back; the map is then fitted to everything.
    """
    fitted, held_back = fitted.cpu(), held_back.cpu()
    errors = {ridge: _error(_ridge(fitted, ridge), held_back) for ridge in RIDGES}
    best = min(errors, key=errors.__getitem__)
    solution = _ridge(fitted + held_back, best)
    weight, bias = solution[:-1].clone(), solution[-1]
    # Predicted was what recovery by likeness leaves, the sum of the first two inputs: the map adds it.
    channels = len(bias)
    identity = torch.eye(channels, dtype=torch.float64)
    weight[:channels] += identity
    weight[channels : 2 * channels] += identity
    return weight.float(), bias.float(), errors[best]


def _ridge(sums: ScaleSums, ridge: float) -> Tensor:
    """[D + 1, C]: ridge regression on inputs of mean 0 and deviation 1; the mean is not shrunk."""
    count = sums.inputs[-1, -1]
    mean = sums.inputs[-1, :-1] / count
    covariance = sums.inputs[:-1, :-1] / count - torch.outer(mean, mean)
    deviation = covariance.diagonal().clamp_min(0.0).sqrt()
    # A channel that never changes predicts nothing.
    scale = torch.where(deviation > 1e-6, 1.0 / deviation.clamp_min(1e-6), 0.0)
    wanted = sums.both[-1] / count
    shared = sums.both[:-1] / count - torch.outer(mean, wanted)
    matrix = scale[:, None] * covariance * scale
    matrix.diagonal().add_(ridge)
    weight = scale[:, None] * torch.linalg.solve(matrix, scale[:, None] * shared)
    return torch.cat([weight, (wanted - mean @ weight)[None]])


def _error(solution: Tensor, sums: ScaleSums) -> float:
    """Squared error on tokens that only their sums are known of, relative to predicting zero."""
    crossed = (solution * sums.both).sum()
    predicted = (solution * (sums.inputs @ solution)).sum()
    return float((sums.squares - 2.0 * crossed + predicted) / sums.squares.clamp_min(1e-12))


@dataclass
class Record:
    """What was noted down of a prompt, and the sums over all of them.

    Attributes:
        pruned: Indices of the scales that the plan prunes.
        finals: Hidden states [R, N, C] after the pruned layers, by index of the scale.
        choices: Values drawn, likewise.
        sums: Of fitted tokens and of held back ones, by grid.
        held_back: Whether the prompt is held back.
    """

    pruned: Collection[int]
    finals: dict[int, Tensor] = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)
    sums: dict[Grid, tuple[ScaleSums, ScaleSums]] = field(default_factory=dict)
    held_back: bool = False

    def add(self, grid: Grid, inputs: Tensor, wanted: Tensor) -> None:
        """Adds pruned tokens to the sums of a scale."""
        found = ScaleSums.of(inputs, wanted)
        empty = ScaleSums(*(torch.zeros_like(part) for part in (found.inputs, found.both, found.squares)))
        fitted, held_back = self.sums.get(grid, (empty, empty))
        both = (fitted, held_back + found) if self.held_back else (fitted + found, held_back)
        self.sums[grid] = both


class _NotingPruner(StepVARPruner):
    """Prunes nothing, and notes down hidden states and values."""

    def __init__(self, config: StepVAR, plan: GenerationPlan, device: torch.device, record: Record) -> None:
        super().__init__(config, plan, device)
        self.record = record

    def widen(self, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        if tokens.scale.index in self.record.pruned:
            self.record.finals[tokens.scale.index] = hidden.clone()
        return super().widen(tokens, hidden)

    def settle(self, tokens: Tokens, choice: Choice, expect: Expect) -> Choice:
        self.record.choices[tokens.scale.index] = choice
        return choice


class _PairingPruner(StepVARPruner):
    """Prunes as planned, pairs what it knows with what was noted down, and goes on from the noted values."""

    def __init__(self, config: StepVAR, plan: GenerationPlan, device: torch.device, record: Record) -> None:
        super().__init__(config, plan, device)
        self.record = record

    def widen(self, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        found = super().widen(tokens, hidden)
        if self.state.narrowed is not None and self.state.narrowed.kept is not None:
            self._pair(self.state.narrowed.kept, self.record.finals.pop(tokens.scale.index))
        return found

    def _pair(self, kept: KeptTokens, final: Tensor) -> None:
        pruned = pruned_positions(kept.index, kept.sources.shape[1])
        gains = kept.features - gather_tokens(kept.entry, kept.index)
        inputs = map_inputs(kept.entry, gains, kept.index, kept.sources, kept.grid, pruned)
        own, alike, *_ = inputs.chunk(INPUTS, dim=-1)
        self.record.add(kept.grid, inputs, gather_tokens(final, pruned) - own - alike)

    def settle(self, tokens: Tokens, choice: Choice, expect: Expect) -> Choice:
        return self.record.choices.pop(tokens.scale.index)


@dataclass(frozen=True)
class Observed:
    """A plan whose pruner notes things down."""

    method: StepVAR
    kind: type[_NotingPruner] | type[_PairingPruner]
    record: Record

    @property
    def ratios(self) -> Mapping[int, float]:
        return self.method.ratios

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        return self.method.plan(schedule, depth)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return self.kind(self.method, plan, device, self.record)
