"""Calibrated recovery: what a map reads and predicts, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from random_maps import random_maps
from stepvar.generation.tokens import gather_tokens
from stepvar.generation.weight_sketch import WeightSketch
from stepvar.pruning.calibrated import FittedMap, map_inputs, pruned_positions
from stepvar.pruning.guided import guided_gains
from stepvar.pruning.interpolation import nearest_kept
from stepvar.pruning.recovery import RECOVERIES, Guided, KeptTokens, ready_recoveries
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, draw, make_transformer

LATE = {-2: 0.4, -1: 0.6}
GRIDS, DEPTH, WIDTH = [(9, 7), (12, 10)], 4, 64
MAPS = random_maps(GRIDS, WIDTH, (1, DEPTH))


@pytest.fixture(scope="module")
def model():
    return make_transformer(depth=DEPTH)


def make_case(grid=(2, 5, 6), kept=17, channels=4, rows=2):
    random = torch.Generator().manual_seed(3)
    tokens = grid[0] * grid[1] * grid[2]
    index = torch.rand(1, tokens, generator=random).argsort(dim=1)[:, :kept].sort(dim=1).values
    entry = torch.randn(rows, tokens, channels, generator=random)
    gains = torch.randn(rows, kept, channels, generator=random)
    return entry, gains, index.repeat(rows, 1), grid


def test_inputs_are_the_token_itself_and_gains_of_kept_ones_near_it():
    entry, gains, index, grid = make_case()
    sources = nearest_kept(index, grid)
    pruned = pruned_positions(index, 60)
    assert sorted([*index[0].tolist(), *pruned[0].tolist()]) == list(range(60))
    assert pruned[0].tolist() == sorted(pruned[0].tolist())
    own, alike, near, around = map_inputs(entry, gains, index, sources, grid, pruned).chunk(4, dim=-1)
    assert torch.equal(own, gather_tokens(entry, pruned))
    assert torch.equal(alike, gather_tokens(guided_gains(entry, gains, index, sources, grid), pruned))
    assert torch.equal(near, gather_tokens(gather_tokens(gains, sources), pruned))
    kept = {place: slot for slot, place in enumerate(index[0].tolist())}
    for column, place in enumerate(pruned[0].tolist()):
        frame, row, line = place // 30, place % 30 // 6, place % 6
        slots = [
            slot
            for other, slot in kept.items()
            if other // 30 == frame and abs(other % 30 // 6 - row) <= 2 and abs(other % 6 - line) <= 2
        ]
        expected = gains[:, slots].mean(dim=1) if slots else near[:, column]
        torch.testing.assert_close(around[:, column], expected)


def test_a_map_of_ones_is_recovery_by_likeness_and_kept_tokens_stay_themselves():
    entry, gains, index, grid = make_case(grid=(1, 9, 7), kept=20, channels=WIDTH)
    features = gather_tokens(entry, index) + gains
    kept = KeptTokens(features, index, grid, images=1, entry=entry)
    exact = random_maps([(9, 7)], WIDTH, (1, DEPTH), noise=0.0)
    torch.testing.assert_close(exact.after(kept), Guided().after(kept))
    assert torch.equal(gather_tokens(MAPS.after(kept), index), features)
    half = KeptTokens(features.bfloat16(), index, grid, images=1, entry=entry.bfloat16())
    assert MAPS.after(half).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="is for a width of 64, and this model's is 4: fit it"):
        MAPS.after(KeptTokens(features[..., :4], index, grid, images=1, entry=entry[..., :4]))


def test_without_a_fit_it_is_refused_and_not_listed_among_what_works_anywhere():
    assert "calibrated" in RECOVERIES and "calibrated" not in ready_recoveries()
    with pytest.raises(ValueError, match="has to be fitted to the model: run 'stepvar calibrate --recovery"):
        StepVAR(LATE, recovery="calibrated")
    # Beside a rule that has to be fitted, others are still known by name.
    assert StepVAR(LATE, recovery=Guided()) == StepVAR(LATE, recovery="guided")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratios": {-3: 0.4}}, r"No map was fitted for scale 6x5, only for 9x7, 12x10"),
        ({"first_layer": 2}, r"scale 9x7 was fitted for one narrowing over layers 1 to 3, and the plan"),
        ({"dense_end": 1}, r"was fitted for one narrowing over layers 1 to 3"),
        ({"stages": 2}, r"was fitted for one narrowing over layers 1 to 3"),
    ],
)
def test_plans_that_it_was_not_fitted_for_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        replace(StepVAR(LATE, recovery=MAPS), **fields).plan(SMALL, DEPTH)


def test_maps_are_checked():
    good = MAPS.maps[0]
    with pytest.raises(ValueError, match="scale 9x7 holds numbers that are not finite"):
        replace(good, bias=good.bias * torch.nan)
    with pytest.raises(ValueError, match=r"has shapes \(256, 64\) and \(63\,\); a width C needs"):
        replace(good, bias=good.bias[1:])


def test_plans_with_it_compare_copy_and_say_what_they_are():
    plan = StepVAR(LATE, recovery=MAPS)
    for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert copied == plan and hash(copied) == hash(plan)
    other = FittedMap((1, 9, 7), (1, 4), 0.5, 0.75, MAPS.maps[0].weight + 1.0, MAPS.maps[0].bias)
    assert StepVAR(LATE, recovery=replace(MAPS, maps=(other, MAPS.maps[1]))) != plan
    assert repr(plan) == "StepVAR(ratios={-2: 0.4, -1: 0.6}, recovery=Calibrated(9x7, 12x10))"
    assert [entry["scale"] for entry in plan.settings()["recovery"]["maps"]] == ["9x7", "12x10"]


def test_dropped_guidance_and_every_copy_are_filled(model):
    for fields in ({}, {"unguided": -1}, {"unguided": -2, "remaining": "unconditional"}):
        fitted, likeness = (
            draw(model, pruning=StepVAR(LATE, recovery=rule, **fields)) for rule in (MAPS, "guided")
        )
        assert fitted.fingerprint() != likeness.fingerprint()
        assert torch.isfinite(fitted.result.latent).all()


def test_a_sketch_knows_weights_in_any_number_format_and_no_others(model):
    sketch = WeightSketch.of(model)
    assert sketch == WeightSketch.of(make_transformer(depth=DEPTH)) and sketch.describes(model)
    for dtype in (torch.bfloat16, torch.float16):
        assert sketch.describes(make_transformer(depth=DEPTH).to(dtype))
        assert WeightSketch.of(make_transformer(depth=DEPTH).to(dtype)).describes(model)
    assert sketch.describes(make_transformer(depth=DEPTH).to("meta"))
    tuned = make_transformer(depth=DEPTH)
    with torch.no_grad():
        next(part for part in tuned.blocks[2].parameters() if part.dim() == 2).mul_(1.01)
    for other in (tuned, make_transformer(seed=1, depth=DEPTH), make_transformer(depth=DEPTH + 1)):
        assert not sketch.describes(other)
