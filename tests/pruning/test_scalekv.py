"""ScaleKV: what layers remember between scales, who chooses it, and what that saves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.generation.plan import GenerationPlan, ScalePlan
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.scalekv import KERNEL, WINDOW, Budget, ScaleKV, choose, window_places
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, bits, draw, make_text, make_transformer

DEPTH = 4
BUDGETS = {-2: Budget(20, 40, (0,)), -1: Budget(30, 110, (0, 2))}
SMALL_BUDGETS = ScaleKV(BUDGETS, capacity=40)


@pytest.fixture(scope="module")
def model():
    return make_transformer(depth=DEPTH)


@pytest.fixture(scope="module")
def dense(model):
    return draw(model)


def test_a_plan_says_what_each_layer_remembers():
    plan = SMALL_BUDGETS.plan(SMALL, DEPTH)
    # Tokens so far are 1, 5, 17, 47 (over the capacity: cut for the coming scale), then 63 more, then 120.
    assert plan.remembered(0) == [1, 5, 17, 40, 103, 0]
    assert plan.remembered(1) == [1, 5, 17, 20, 30, 0]
    assert plan.remembered(2) == [1, 5, 17, 20, 83, 0]
    assert plan.attended(1) == [1, 5, 17, 47, 83, 150]
    assert [plan.cached_tokens(layer) for layer in range(DEPTH)] == [103, 30, 83, 30]
    assert plan.stored_tokens()[-1] == 103 + 30 + 83 + 30 + 223, "and the widest scale of a layer, once"


def test_a_cache_that_is_small_enough_is_left_alone():
    plan = ScaleKV(BUDGETS, capacity=60).plan(SMALL, DEPTH)
    assert plan.remembered(1) == [1, 5, 17, 47, 30, 0]


def test_a_share_limits_all_but_the_drafters():
    plan = ScaleKV(share=0.1, drafters=(1,), capacity=20).plan(SMALL, DEPTH)
    assert plan.remembered(0) == [1, 5, 17, 23, 23, 0]
    assert plan.remembered(1) == [1, 5, 17, 47, 110, 0]


@pytest.mark.parametrize(("name", "depth"), [("2B", 32), ("8B", 40)])
def test_published_budgets_remember_a_tenth_between_scales(name, depth):
    """The authors' claim of "10 %": 85 GB become 8.5 GB."""
    schedule = SizeTable.published().schedule(1.0, "1M")
    plan = ScaleKV.published(name).plan(schedule, depth)
    remembered = sum(plan.cached_tokens(layer) for layer in range(depth))
    assert 0.08 < remembered / (depth * schedule.tokens) < 0.105
    assert plan.remembered(5)[:8] == [1, 5, 21, 57, 121, 265, 521, {"2B": 632, "8B": 629}[name]]
    everything = GenerationPlan.dense(schedule, depth).stored_tokens()[-1]
    assert plan.stored_tokens()[-1] < 0.15 * everything, "with the workspace of one layer"


def test_memory_and_attention_of_the_2b_model_come_out_of_the_plan():
    with torch.device("meta"):
        model = InfinityTransformer.published("2B")
    schedule = SizeTable.published().schedule(1.0, "1M")
    plan, full = ScaleKV.published("2B").plan(schedule, 32), GenerationPlan.dense(schedule, 32)
    limited, dense = (scale_costs(model, entry, [2] * 13, 16) for entry in (plan, full))
    assert sum(cost.cache_bytes for cost in limited) == 2 * plan.stored_tokens()[-1] * 2048 * 2 * 4
    saved = 31 * (10521 - 4096 - 465) + 6425 - 6385
    assert dense[-1].flops - limited[-1].flops == 2 * 4 * 4096 * 2048 * saved


@pytest.mark.parametrize("inner", [None, StepVAR(ratios={-2: 0.3, -1: 0.5}), FastVAR(ratios={-1: 0.5})])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_is_planned_is_what_is_held(model, inner, guidance):
    method = ScaleKV(BUDGETS, capacity=40, pruning=inner)
    plan, lengths = method.plan(SMALL, DEPTH), []

    def hear(report):
        lengths.append([layer.length for layer in drawn.session.cache.layers])

    drawn = Watcher()
    drawing = draw(model, pruning=method, guidance=guidance, observer=hear, seeds=[0, 1], watch=drawn)
    remembered = [[plan.remembered(layer)[scale] for layer in range(DEPTH)] for scale in range(6)]
    assert lengths == remembered
    rows = 2 if guidance == 1.0 else 4
    costs = scale_costs(model, plan, [rows] * 6, 5)
    assert sum(cost.cache_bytes for cost in costs) == drawing.result.cache_bytes
    assert all(cost.cache_bytes >= 0 for cost in costs)


class Watcher:
    """Gets the session of a run before it starts."""

    session = None


def test_scales_before_the_first_cut_are_untouched(model, dense):
    limited = draw(model, pruning=SMALL_BUDGETS)
    for scale in range(4):
        assert torch.equal(limited.tensors["logits", scale], dense.tensors["logits", scale])
    assert not torch.allclose(limited.tensors["logits", 4], dense.tensors["logits", 4])
    difference = (limited.tensors["layer 0", 4] - dense.tensors["layer 0", 4]).abs().mean()
    blind = draw(model, pruning=ScaleKV({-2: Budget(16), -1: Budget(16)}, capacity=0))
    worse = (blind.tensors["layer 0", 4] - dense.tensors["layer 0", 4]).abs().mean()
    assert difference < worse, "who remembers more stays closer"


@pytest.mark.parametrize("inner", [None, StepVAR(ratios={-2: 0.3, -1: 0.5})])
def test_a_batch_equals_single_runs(model, inner):
    method = ScaleKV(BUDGETS, capacity=40, pruning=inner)
    texts = make_text(3, 9)
    batch = draw(model, text=texts, seeds=[3, 4], pruning=method)
    again = draw(model, text=texts, seeds=[3, 4], pruning=method)
    assert batch.fingerprint() == again.fingerprint()
    for image in range(2):
        single = draw(model, text=[texts[image]], seeds=[3 + image], pruning=method)
        assert all(torch.equal(bits(batch)[scale][image], drawn[0]) for scale, drawn in bits(single).items())


def test_released_copies_leave_the_others_as_they_are(model):
    weights = [3.0, 3.0, 3.0, 3.0, 1.0, 1.0]
    released = draw(model, pruning=SMALL_BUDGETS, guidance=weights)
    carried = draw(model, pruning=SMALL_BUDGETS, guidance=weights, release=False)
    torch.testing.assert_close(released.result.latent, carried.result.latent)


@given(st.integers(0, 30), st.integers(17, 40), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_window_asks_and_neighbours_are_lifted_along(earlier, count, seed):
    generator = torch.Generator().manual_seed(seed)
    total = earlier + 25
    count = min(count, total)
    keys = torch.randn(2, 3, total, 8, generator=generator)
    window = torch.arange(16) + earlier + 5
    query = torch.randn(2, 3, 16, 8, generator=generator)
    chosen = choose(query, keys, window, count)
    own = set(window.tolist())
    for row in range(2):
        for head in range(3):
            asked = (query[row, head] @ keys[row, head].T).sum(dim=0).tolist()
            scores = {
                place: max(
                    asked[near]
                    for near in range(max(place - KERNEL // 2, 0), min(place + KERNEL // 2 + 1, total))
                    if near not in own or near == place
                )
                for place in range(total)
                if place not in own
            }
            kept = chosen[row, head].tolist()
            assert kept == sorted(set(kept))
            assert own <= set(kept)
            lowest = min((scores[place] for place in kept if place not in own), default=float("inf"))
            left = [scores[place] for place in scores if place not in kept]
            assert not left or max(left) <= lowest + 1e-4


def test_the_window_lies_on_a_grid_of_four_by_four():
    entry = ScalePlan(Scale(9, 32, 32), kept=1024)
    rows = [3, 11, 19, 27]
    assert window_places(entry, 0) == [row * 32 + column for row in rows for column in rows]
    small = ScalePlan(Scale(3, 4, 6), kept=24)
    assert window_places(small, 0) == [row * 6 + column for row in range(4) for column in range(4)]
    pruned = ScalePlan(Scale(9, 32, 32), kept=64, first_layer=1, last_layer=4)
    assert window_places(pruned, 0) == window_places(entry, 0)
    assert window_places(pruned, 1) == list(range(2, 64, 4))
    assert window_places(ScalePlan(Scale(0, 1, 1), kept=1), 0) == [0]
    assert len(window_places(ScalePlan(Scale(0, 5, 5, frames=2), kept=50), 0)) == WINDOW


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"ScaleKV limits nothing"),
        ({"share": 1.0}, r"share is 1; it must lie between 0 and 1"),
        ({"share": 0.1, "capacity": -1}, r"capacity is -1"),
        ({"budgets": {-1: Budget(15)}}, r"budget of scale -1 is below 16 tokens"),
        ({"budgets": {-1: Budget(20, 8, (0,))}}, r"budget of scale -1 is below 16 tokens"),
    ],
)
def test_fields_that_cannot_be_are_refused_in_words(fields, words):
    with pytest.raises(ValueError, match=words):
        ScaleKV(**fields)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (ScaleKV({-1: Budget(20)}), r"No layer would forget anything: .* capacity of 650 tokens"),
        (ScaleKV(share=0.6), r"No layer would forget anything: .* capacity of 0 tokens"),
        (ScaleKV({-1: Budget(400)}, capacity=0), r"No layer would forget anything"),
        (ScaleKV({-1: Budget(20, 40, (7,))}, capacity=0), r"names drafter layers \(7,\) of a model of 4"),
        (ScaleKV({7: Budget(20)}), r"No scale is 7 tokens high"),
    ],
)
def test_plans_that_cannot_be_are_refused_in_words(method, words):
    with pytest.raises(ValueError, match=words):
        method.plan(SMALL, DEPTH)
    with pytest.raises(ValueError, match=r"No budgets were published for '125M'; known are 2B, 8B"):
        ScaleKV.published("125M")


def test_a_clip_is_limited_too():
    clip = ScaleSchedule((Scale(0, 1, 1), Scale(1, 4, 4, frames=3), Scale(2, 6, 6, frames=3)))
    plan = ScaleKV(share=0.12, drafters=(), capacity=0).plan(clip, 2)
    assert plan.remembered(1) == [1, 19, 0]
