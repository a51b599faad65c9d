"""From a target to a plan: the search, with a machine whose times are known, and once with real ones."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from stepvar.evaluation import plan_search
from stepvar.evaluation.calibration import PROMPT_SEED, calibrate
from stepvar.evaluation.plan_search import MISS, TOLERANCE
from stepvar.metrics.fidelity import bounded_psnr

PROMPTS = ["a red star", "two blue rings on sand", "a green circle"]


@pytest.fixture(scope="module")
def pipeline():
    from tiny_pipeline import make_pipeline

    return make_pipeline()


@pytest.fixture
def known_machine(monkeypatch):
    """Times are a fixed part, a part proportional to FLOPs that bends a little, and some noise."""
    random = np.random.default_rng(0)

    def times(search, plans, pictures):
        flops = [1.0, *(search.flops(*plan) for plan in plans)]
        return [(0.15 + 0.85 * share**0.9) * (1 + random.normal(0, 0.003, search.repeats)) for share in flops]

    monkeypatch.setattr(plan_search.PlanSearch, "_times", times)


@pytest.mark.parametrize(("target", "skips"), [(1.2, 0), (1.3, 0), (1.3, 2), (3.0, 2)])
def test_a_target_speed_is_met_within_five_percent(pipeline, known_machine, target, skips):
    found = calibrate(pipeline, PROMPTS, target_speedup=target, skips=skips)
    assert found.speedup.value == pytest.approx(target, rel=0.05)
    if target == 1.3:
        assert found.plan.skip == ()  # skipping is the last resort
    assert pipeline("a red star", seed=1, pruning=found.plan).images
    assert len(found.trials) >= 4 and found.options.startswith("--ratios=")


def test_between_two_numbers_of_skips_the_faster_plan_is_taken(pipeline, known_machine):
    found = calibrate(pipeline, PROMPTS, target_speedup=2.4, skips=2)
    assert found.plan.skip == (-2, -1) and found.plan.ratios == {} and found.speedup.value > 2.4


def test_a_target_speed_out_of_reach_names_what_can_be_had(pipeline, known_machine):
    with pytest.raises(ValueError, match=r"cannot be reached .* it is [12]\.\d\d"):
        calibrate(pipeline, PROMPTS, target_speedup=40.0)


def test_a_target_likeness_is_met_and_not_overdone(pipeline, known_machine):
    ends = [np.mean(calibrate_decibels(pipeline, share)) for share in (0.05, 0.9)]
    target = float(0.4 * ends[0] + 0.6 * ends[1])
    search = plan_search.PlanSearch(pipeline, PROMPTS, "stepvar", 1, None, {})
    chosen = search.for_psnr(target, 0)
    assert chosen.psnr >= target and chosen.psnr == np.mean(calibrate_decibels(pipeline, chosen.share))
    found = calibrate(pipeline, PROMPTS, target_psnr=target)
    tried = [trial for trial in found.trials if trial.psnr is not None and trial.psnr < target]
    assert (
        tried
        and min(trial.share for trial in tried)
        - max(trial.share for trial in found.trials if trial.psnr is not None and trial.psnr >= target)
        < 0.05
    )
    with pytest.raises(ValueError, match="the gentlest pruning has"):
        calibrate(pipeline, PROMPTS, target_psnr=60.0)


def calibrate_decibels(pipeline, share):
    search = plan_search.PlanSearch(pipeline, PROMPTS, "stepvar", 1, None, {})
    return search.seen.decibels(search.plan(share, 0))


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:2], PROMPTS[:1]])
def test_the_final_numbers_are_of_what_was_held_back(pipeline, monkeypatch, prompts):
    drawn, call = [], type(pipeline).__call__

    def recorded(self, texts, *, seed, **options):
        drawn.append(list(zip(texts, seed, strict=True)))
        return call(self, texts, seed=seed, **options)

    monkeypatch.setattr(type(pipeline), "__call__", recorded)
    found = calibrate(pipeline, prompts, target_psnr=9.0, repeats=1)
    monkeypatch.undo()

    *before, last = [pictures for pictures, _ in groupby(drawn)]
    assert before and last not in before
    if len(prompts) == 3:
        assert last[0][0] not in {text for [(text, _)] in before}
    dense, pruned = (
        np.asarray(pipeline(last[0][0], seed=last[0][1], pruning=plan).images[0])
        for plan in (None, found.plan)
    )
    assert found.psnr.value == pytest.approx(bounded_psnr(pruned, dense))


def test_the_trial_nearest_to_the_target_is_kept(pipeline, monkeypatch):
    """On a machine too moody for the search to end by itself."""
    rounds = iter([[1.1, 1.2, 1.5, 1.8], [1.1], [1.34], [1.2], [1.45]])

    def times(search, plans, pictures):
        speeds = next(rounds) if pictures is search.seen else [1.3]
        assert len(speeds) == len(plans)
        return [[1.0], *([1.0 / speed] for speed in speeds)]

    monkeypatch.setattr(plan_search.PlanSearch, "_times", times)
    found = calibrate(pipeline, PROMPTS, target_speedup=1.3)
    assert next(rounds, None) is None
    [nearest] = [trial for trial in found.trials if trial.speedup == pytest.approx(1.34)]
    assert found.options == nearest.options


@pytest.mark.parametrize(
    ("drift", "corrected", "told"),
    [(0.0, False, None), (0.02, False, None), (-0.08, True, None), (0.08, True, None)]
    + [(-0.3, True, "below"), (0.3, True, "above")],
)
@pytest.mark.parametrize("target", [{"target_speedup": 1.3}, {"target_psnr": 20.0}])
def test_a_miss_is_corrected_once_and_then_told(pipeline, monkeypatch, target, drift, corrected, told):
    """What was held back is faster or likelier than what the search saw, by a known factor."""
    used = []

    def factor(pictures):
        used.append(pictures.seed)
        return 1.0 if pictures.seed == PROMPT_SEED else 1.0 + drift

    def times(search, plans, pictures):
        spent = [(0.15 + 0.85 * search.flops(*plan)) / factor(pictures) for plan in plans]
        return [[1.0], *([seconds] for seconds in spent)]

    def decibels(pictures, plan):
        return [factor(pictures) * (30.0 - 20.0 * plan.ratios.get(-1, 0.0))] * len(pictures.prompts)

    monkeypatch.setattr(plan_search.PlanSearch, "_times", times)
    monkeypatch.setattr(plan_search.PromptSet, "decibels", decibels)
    found = calibrate(pipeline, PROMPTS, **target)
    assert len(set(used)) == (3 if corrected else 2)
    assert (found.warning is not None) == (abs(found.error) > MISS) == (told is not None)
    assert abs(found.error) < (abs(drift) if corrected else abs(drift) + TOLERANCE)
    assert found.as_json()["warning"] == found.warning and found.as_json()["error"] == found.error
    if told:
        [value] = target.values()
        assert f"{abs(found.error):.1%} {told} the target of {value:g}" in found.warning


def test_other_methods_are_calibrated_too(pipeline, known_machine):
    found = calibrate(pipeline, PROMPTS, target_speedup=1.2, method="fastvar")
    assert type(found.plan).__name__ == "FastVAR" and found.options.startswith("--method fastvar --ratios=")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "one of the two"),
        ({"target_speedup": 2.0, "target_psnr": 20.0}, "one of the two"),
        ({"target_speedup": 0.9}, "must be above 1"),
        ({"target_psnr": -3.0}, "positive number of dB"),
        ({"target_speedup": 2.0, "skips": 5}, "this model has 6 scales"),
        ({"target_speedup": 2.0, "method": "fastvr"}, "Unknown pruning method 'fastvr'"),
    ],
)
def test_impossible_targets_are_refused(pipeline, known_machine, arguments, words):
    with pytest.raises(ValueError, match=words):
        calibrate(pipeline, PROMPTS, **arguments)
    with pytest.raises(ValueError, match="needs prompts"):
        calibrate(pipeline, [], target_speedup=2.0)
