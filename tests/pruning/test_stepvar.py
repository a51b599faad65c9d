"""StepVAR at work on one generation: narrows once, keeps places, recovers every position."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from stepvar.generation.pruner import PruningMethod
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.pruning.interpolation import nearest_kept
from stepvar.pruning.scores import SCORERS, texture_scores
from stepvar.pruning.selection import keep_highest
from stepvar.pruning.stepvar import StepVAR

CLIP = ScaleSchedule((Scale(0, 1, 1), Scale(1, 3, 4), Scale(2, 3, 5, frames=4), Scale(3, 4, 6, frames=4)))
DEPTH = 3


def start(method: StepVAR):
    plan = method.plan(CLIP, DEPTH)
    return plan, method.start(plan, torch.device("cpu"))


def hidden_states(scale: Scale, rows: int = 4, channels: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(scale.index)
    return torch.randn(rows, scale.tokens, channels, generator=generator)


def positions(scale: Scale) -> torch.Tensor:
    return torch.arange(scale.tokens).view(1, -1, 1)


def run_scale(pruner, entry, hidden: torch.Tensor, latent: torch.Tensor):
    """Passes hidden states through all layers, which add nothing; returns what each layer saw."""
    pruner.begin_scale(entry, len(latent), latent)
    tokens, seen = Tokens(entry.scale, positions(entry.scale)), []
    for layer in range(DEPTH):
        tokens, hidden = pruner.enter(layer, tokens, hidden)
        seen.append((tokens, hidden))
    return seen, pruner.leave(tokens, hidden)


@pytest.mark.parametrize("score", SCORERS)
@pytest.mark.parametrize("frame_distance", [1, 3])
def test_clips_are_pruned_and_recovered_over_space_and_time(score, frame_distance):
    method = StepVAR(ratios={-1: 0.7}, score=score, frame_distance=frame_distance)
    plan, pruner = start(method)
    hidden = hidden_states(CLIP[3])
    seen, recovered = run_scale(pruner, plan[3], hidden, torch.randn(2, 5, 4, 8, 12))
    assert [tokens.count for tokens, _ in seen] == [96, 29, 29]
    kept = pruner.kept_index
    assert kept.shape == (2, 29)
    rows = kept.repeat(2, 1)
    tokens, narrowed = seen[-1]
    assert torch.equal(tokens.index, rows), "both copies of an image keep the same tokens"
    assert torch.equal(tokens.positions.squeeze(-1), rows), "places travel with their tokens"
    assert torch.equal(narrowed, torch.stack([row[index] for row, index in zip(hidden, rows, strict=True)]))
    source = rows.gather(1, nearest_kept(rows, CLIP[3].grid, frame_distance))
    expected = torch.stack([row[index] for row, index in zip(hidden, source, strict=True)])
    assert torch.equal(recovered, expected)


def test_the_conditional_copy_decides():
    plan, pruner = start(StepVAR(ratios={-1: 0.5}, score="texture"))
    hidden = hidden_states(CLIP[3])
    run_scale(pruner, plan[3], hidden, torch.randn(2, 5, 4, 8, 12))
    expected = keep_highest(texture_scores(hidden[:2], CLIP[3].grid), 48)
    assert torch.equal(pruner.kept_index, expected)


@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_tokens_are_narrowed_once_at_the_named_layer(first_layer):
    plan, pruner = start(StepVAR(ratios={-1: 0.5}, first_layer=first_layer))
    seen, _ = run_scale(pruner, plan[3], hidden_states(CLIP[3]), torch.randn(2, 5, 4, 8, 12))
    assert [tokens.count for tokens, _ in seen] == [96] * first_layer + [48] * (DEPTH - first_layer)


def test_other_scales_pass_untouched():
    plan, pruner = start(StepVAR(ratios={-1: 0.5}))
    for entry in plan.scales[:3]:
        hidden = hidden_states(entry.scale)
        seen, left = run_scale(pruner, entry, hidden, torch.randn(2, 5, 4, 8, 12))
        assert all(state is hidden for _, state in seen)
        assert left is hidden
        assert pruner.kept_index is None
    run_scale(pruner, plan[3], hidden_states(CLIP[3]), torch.randn(2, 5, 4, 8, 12))
    assert pruner.kept_index is not None
    pruner.begin_scale(plan[0], 2, torch.randn(2, 5, 4, 8, 12))
    assert pruner.kept_index is None, "a scale does not inherit the choice of another"


def test_change_looks_at_the_codes_of_the_last_two_scales():
    plan, pruner = start(StepVAR(ratios={-1: 0.9}, score="change"))
    before, after = torch.ones(1, 2, 4, 4, 6), torch.ones(1, 2, 4, 4, 6)
    after[:, 0, 3, 2:, 4:] = -1.0
    for entry, latent in zip(plan.scales, (before, before, before, after), strict=True):
        run_scale(pruner, entry, hidden_states(entry.scale, rows=1), latent)
    changed = {3 * 24 + row * 6 + column for row in (2, 3) for column in (4, 5)}
    assert changed <= set(pruner.kept_index[0].tolist())


def test_random_scores_follow_the_seed_of_the_method():
    def kept(seed: int) -> list[int]:
        plan, pruner = start(StepVAR(ratios={-1: 0.5}, score="random", seed=seed))
        run_scale(pruner, plan[3], hidden_states(CLIP[3]), torch.randn(2, 5, 4, 8, 12))
        assert torch.equal(pruner.kept_index[0], pruner.kept_index[1])
        return pruner.kept_index[0].tolist()

    assert kept(0) == kept(0) != kept(1)


def test_the_configuration_is_frozen_and_a_pruning_method():
    method = StepVAR(ratios={-1: 0.5})
    assert isinstance(method, PruningMethod)
    with pytest.raises(FrozenInstanceError):
        method.kernel = 5
    assert method == StepVAR(ratios={-1: 0.5}, score="structure+texture")
