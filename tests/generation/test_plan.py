"""Naming scales, fixing what will run, and refusing what cannot."""

from __future__ import annotations

import pytest

from stepvar.generation.plan import GenerationPlan, find_scale
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.models.request import check_plan
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.int8_cache import Int8Cache
from stepvar.pruning.presets import resolve_pruning
from stepvar.pruning.scalekv import ScaleKV
from stepvar.pruning.skipvar import SkipVAR
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL

DEPTH = 4


def test_scales_are_named_by_height_or_from_the_end():
    assert [find_scale(SMALL, scale.height) for scale in SMALL] == list(range(6))
    assert [find_scale(SMALL, -offset) for offset in range(1, 7)] == [5, 4, 3, 2, 1, 0]


def test_height_is_not_width():
    wide = SizeTable.published().schedule(0.5, "1M")
    assert find_scale(wide, 45) == 12
    with pytest.raises(ValueError, match="No scale is 90 tokens high"):
        find_scale(wide, 90)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (5, r"No scale is 5 tokens high; the scales are 1x1, 2x2, 4x3, 6x5, 9x7, 12x10\."),
        (0, r"No scale is 0 tokens high"),
        (-7, r"Scale -7 does not exist: counted from the end, the schedule has scales -1 to -6\."),
    ],
)
def test_unknown_scales_are_refused_with_what_there_is(name, words):
    with pytest.raises(ValueError, match=words):
        find_scale(SMALL, name)


def test_ambiguous_heights_are_refused_with_the_names_that_work():
    wide = SizeTable.published().schedule(0.333, "0.06M")
    heights = [scale.height for scale in wide]
    assert heights.count(2) == 2
    with pytest.raises(ValueError, match=r"^Name scale 2 from the end, -6 \(2x2\) or -5 \(2x6\): 2 scales"):
        find_scale(wide, 2)
    assert [wide[find_scale(wide, name)].height for name in (-6, -5)] == [2, 2]


def test_ambiguous_heights_of_a_long_video_are_told_briefly():
    sizes = VideoSizes.published("480p")
    schedule = sizes.schedule(sizes.nearest_template(9 / 16), sizes.latents(10))
    with pytest.raises(ValueError) as error:
        find_scale(schedule, schedule[-1].height)
    # The command line shows no more of a message than this.
    assert len(str(error.value)) < 600
    assert f"-1 ({schedule[-1]})" in str(error.value)
    assert "1x1" not in str(error.value)


def test_a_plan_fixes_counts_layers_and_skips():
    plan = StepVAR(ratios={9: 0.5, -1: 0.25}, skip=(6,), first_layer=2).plan(SMALL, DEPTH)
    assert [entry.kept for entry in plan.scales] == [1, 4, 12, 0, 32, 90]
    assert [entry.skipped for entry in plan.scales] == [False, False, False, True, False, False]
    assert [entry.prunes for entry in plan.scales] == [False] * 4 + [True, True]
    assert [plan[4].tokens(layer) for layer in range(DEPTH)] == [63, 63, 32, 32]
    assert [plan.cached_tokens(layer) for layer in range(DEPTH)] == [200, 200, 139, 139]
    assert plan.prunes
    assert plan.changes


def test_a_dense_plan_runs_everything():
    plan = GenerationPlan.dense(SMALL, DEPTH)
    assert [plan.cached_tokens(layer) for layer in range(DEPTH)] == [SMALL.tokens] * DEPTH
    assert not plan.changes
    assert not StepVAR(ratios={-1: 0.0, -2: 0.0}).plan(SMALL, DEPTH).changes


def test_a_ratio_of_one_is_a_skip_and_says_so():
    by_ratio = StepVAR(ratios={-1: 1.0}).plan(SMALL, DEPTH)
    assert by_ratio == StepVAR(skip=(-1,)).plan(SMALL, DEPTH)
    assert by_ratio[5].skipped
    assert by_ratio[5].kept == 0
    assert not by_ratio[5].prunes


def test_two_names_of_one_skipped_scale_mean_the_same():
    assert StepVAR(skip=(12, -1)).plan(SMALL, DEPTH) == StepVAR(skip=(-1,)).plan(SMALL, DEPTH)


@pytest.mark.parametrize(("depth", "first"), [(1, None), (2, 1), (8, 1), (12, 1), (24, 2), (32, 3), (40, 4)])
def test_the_first_layers_stay_dense(depth, first):
    if first is None:
        with pytest.raises(ValueError, match=r"a model of 1 layers has 0 to 0"):
            StepVAR(ratios={-1: 0.5}).plan(SMALL, depth)
        return
    entry = StepVAR(ratios={-1: 0.5}).plan(SMALL, depth)[5]
    assert (entry.first_layer, entry.last_layer) == (first, depth)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (StepVAR(ratios={-1: 0.5, 12: 0.4}), r"Scale 12x10 is named twice"),
        (StepVAR(ratios={-1: 0.5}, skip=(12,)), r"Scale 12x10 is named twice: give it one ratio, or skip it"),
        (StepVAR(ratios={7: 0.5}), r"No scale is 7 tokens high"),
        (StepVAR(skip=(7,)), r"No scale is 7 tokens high"),
        (StepVAR(skip=tuple(range(-6, 0))), r"Every scale is skipped"),
        (StepVAR(ratios=dict.fromkeys(range(-6, 0), 1.0)), r"Every scale is skipped"),
        (StepVAR(skip=(1,)), r"The first scale .* cannot be skipped"),
        (StepVAR(ratios={1: 0.9}), r"Pruning 0.9 of scale 1x1 \(1 tokens\) .* would change nothing: raise"),
        (StepVAR(ratios={2: 0.2}), r"Pruning 0.2 of scale 2x2 \(4 tokens\) .* would change nothing"),
        (StepVAR(ratios={-1: 0.5}, first_layer=4), r"first_layer is 4; a model of 4 layers has 0 to 3"),
        (StepVAR(ratios={-1: 0.5}, first_layer=-1), r"first_layer is -1"),
    ],
)
def test_what_cannot_run_is_refused_in_words(method, words):
    with pytest.raises(ValueError, match=words):
        method.plan(SMALL, DEPTH)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratios": {-1: 1.5}}, r"ratio of scale -1 is 1.5; it must lie in 0..1"),
        ({"ratios": {-1: -0.1}}, r"ratio of scale -1 is -0.1"),
        ({"ratios": {-1: float("nan")}}, r"ratios of StepVAR is \{-1: nan\}; give a mapping"),
        ({"score": "beauty"}, r"Unknown score 'beauty'; known are structure\+texture, structure"),
        ({"normalisation": "max"}, r"Unknown normalisation 'max'; known are minmax, rank, deviation"),
        ({"structure_weight": 1.1}, r"structure_weight is 1.1"),
        ({"kernel": 4}, r"kernel is 4; it must be an odd number of tokens"),
        ({"kernel": 1}, r"kernel is 1"),
        ({"iterations": 0}, r"iterations is 0"),
        ({"frame_distance": -1}, r"frame_distance is -1"),
    ],
)
def test_fields_out_of_range_are_refused_in_words(fields, words):
    with pytest.raises(ValueError, match=words):
        StepVAR(**fields)


def test_a_configuration_does_not_change_with_what_it_was_made_from():
    ratios, skip = {-1: 0.5}, [-2]
    method = StepVAR(ratios=ratios, skip=skip)
    ratios[-1], skip[0] = 0.9, -3
    assert method == StepVAR(ratios={-1: 0.5}, skip=(-2,))


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="ratio"):
        StepVAR(ratio=0.5)


def test_a_method_that_names_nothing_is_refused():
    for method in (StepVAR(), StepVAR(score="texture")):
        with pytest.raises(ValueError, match=r"names no scale to prune or skip"):
            check_plan(method.plan(SMALL, DEPTH), method)
    check_plan(GenerationPlan.dense(SMALL, DEPTH), None)
    zero = StepVAR(ratios={-1: 0.0})
    check_plan(zero.plan(SMALL, DEPTH), zero)


def test_presets_are_the_published_ones():
    assert {name: preset.method for name, preset in PRESETS.items()} == {
        "paper": StepVAR(ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1)),
        "prune": StepVAR(ratios={-2: 0.5, -1: 0.75}),
        "skip": StepVAR(skip=(-2, -1)),
        "fastvar": FastVAR(ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1)),
        "sparsevar-standin": StepVAR(
            ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1), score="texture", anchor_stride=4
        ),
        "unguided": StepVAR(unguided=-2),
        "skipvar": SkipVAR(0.84),
        "scalekv": ScaleKV(share=0.06),
        "int8-cache": Int8Cache(),
        "fastervar": PRESETS["fastervar"].method,
        "best": PRESETS["best"].method,
        "faithful": PRESETS["faithful"].method,
    }


def test_the_plans_of_our_own_keep_what_their_names_promise():
    best, faithful, prune = (PRESETS[name].method for name in ("best", "faithful", "prune"))
    assert -1 not in best.skip, "the last scale carries the detail"
    assert not faithful.skip and not prune.skip
    assert max(faithful.ratios.values()) < min(prune.ratios.values())


def test_what_may_be_passed_as_pruning():
    own = StepVAR(ratios={-1: 0.5})
    assert resolve_pruning(own, PRESETS) is own
    assert resolve_pruning(None, PRESETS) is None
    assert resolve_pruning("none", PRESETS) is None
    assert resolve_pruning("skip", PRESETS) == StepVAR(skip=(-2, -1))
    with pytest.raises(
        ValueError, match=r"Unknown pruning preset 'papr'; known are none, paper, prune, skip, fastvar"
    ):
        resolve_pruning("papr", PRESETS)
    with pytest.raises(ValueError, match=r"pruning is a float; pass StepVAR"):
        resolve_pruning(0.5, PRESETS)


def test_a_schedule_that_is_too_short_for_a_preset_is_refused():
    short = ScaleSchedule.from_grids([(1, 1), (2, 2)])
    with pytest.raises(ValueError, match="Scale -4 does not exist"):
        PRESETS["paper"].method.plan(short, DEPTH)
    with pytest.raises(ValueError, match="Every scale is skipped"):
        PRESETS["skip"].method.plan(short, DEPTH)
