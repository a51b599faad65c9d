"""From a target to a plan: the search, with a machine whose times are known, and once with real ones."""

from __future__ import annotations

import numpy as np
import pytest

from stepvar.evaluation import calibration
from stepvar.evaluation.calibration import calibrate

PROMPTS = ["a red star", "two blue rings on sand", "a green circle"]


@pytest.fixture(scope="module")
def pipeline():
    from tiny_pipeline import make_pipeline

    return make_pipeline()


@pytest.fixture
def known_machine(monkeypatch):
    """Times are a fixed part, a part proportional to FLOPs that bends a little, and some noise."""
    random = np.random.default_rng(0)

    def times(search, plans):
        flops = [1.0, *(search.flops(*plan) for plan in plans)]
        return [(0.15 + 0.85 * share**0.9) * (1 + random.normal(0, 0.003, search.repeats)) for share in flops]

    monkeypatch.setattr(calibration._Search, "_times", times)


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
    found = calibrate(pipeline, PROMPTS, target_psnr=target)
    assert found.psnr.value >= target and found.psnr.n == len(PROMPTS)
    tried = [trial for trial in found.trials if trial.psnr is not None and trial.psnr < target]
    assert (
        tried
        and min(trial.share for trial in tried)
        - max(trial.share for trial in found.trials if trial.psnr is not None and trial.psnr >= target)
        < 0.05
    )
    with pytest.raises(ValueError, match="the gentlest pruning has"):
        calibrate(pipeline, PROMPTS, target_psnr=58.8)


def calibrate_decibels(pipeline, share):
    search = calibration._Search(pipeline, PROMPTS, "stepvar", 1, None, {})
    return search._decibels(search.plan(share, 0))


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
