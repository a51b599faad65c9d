"""Fit of a calibrated recovery: the regression is exact, and what is measured was not fitted to."""

from __future__ import annotations

import pytest
import torch

from stepvar import StepVAR
from stepvar.evaluation.calibration import calibrate_recovery
from stepvar.evaluation.recovery_fit import ScaleSums, fit_recovery, solve
from stepvar.pruning.calibrated import INPUTS
from tiny_pipeline import make_pipeline

PROMPTS = ["a red star", "two blue rings on sand", "a green circle", "a blue ring"] * 2
LATE = {-2: 0.4, -1: 0.6}


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def test_sums_give_the_map_that_all_tokens_together_give():
    random = torch.Generator().manual_seed(0)
    channels = 3
    true = torch.randn(INPUTS * channels, channels, generator=random, dtype=torch.float64)
    inputs = torch.randn(2, 400, INPUTS * channels, generator=random, dtype=torch.float64) + 2.0
    inputs[..., 5] = 1.5  # a channel that never changes
    wanted = inputs @ true + 0.5 + 0.1 * torch.randn(2, 400, channels, generator=random, dtype=torch.float64)
    fitted = ScaleSums.of(inputs[0], wanted[0]) + ScaleSums.of(inputs[1, :200], wanted[1, :200])
    held_back = ScaleSums.of(inputs[1, 200:], wanted[1, 200:])
    weight, bias, error = solve(fitted, held_back)
    # The map adds the first two inputs to what was fitted.
    own, alike, *_ = inputs.chunk(INPUTS, dim=-1)
    predicted = inputs.float() @ weight + bias - (own + alike).float()
    residual = (predicted - wanted.float()).square().mean()
    assert residual < 0.011 and weight.dtype == torch.float32
    assert error == pytest.approx(float(0.01 * channels * 200 / held_back.squares), rel=0.2)
    # Noise that nothing predicts is not fitted: the strongest ridge is taken, and helps.
    noise = torch.randn(3, 60, channels, generator=random, dtype=torch.float64)
    apart = [ScaleSums.of(inputs[0, place : place + 60], noise[part]) for part, place in enumerate((0, 60))]
    assert 0.9 < solve(*apart)[2] < 1.2


def test_a_fit_is_repeatable_and_leaves_random_numbers_alone(pipeline):
    method, state = StepVAR(LATE, score="texture", unguided=-1), torch.get_rng_state()
    first, again = (fit_recovery(pipeline, PROMPTS[:5], method) for _ in range(2))
    assert first == again and torch.equal(torch.get_rng_state(), state)
    recovery = first.recovery
    assert [fitted.name for fitted in recovery.maps] == ["6x6", "8x8"] and recovery.score == "texture"
    assert all(fitted.layers == (1, 2) and 0.0 < fitted.error < 1.5 for fitted in recovery.maps)
    assert (first.ratios, first.score, first.unguided) == (method.ratios, "texture", -1)
    assert fit_recovery(pipeline, PROMPTS[1:6], method) != first


def test_skipped_scales_are_left_out_of_a_fit(pipeline):
    plan = fit_recovery(pipeline, PROMPTS[:4], StepVAR({-2: 1.0, -1: 0.5}))
    assert [fitted.name for fitted in plan.recovery.maps] == ["8x8"]
    assert pipeline("a red star", seed=1, pruning=plan).images


def test_a_calibrated_recovery_is_measured_on_prompts_that_it_did_not_see(pipeline, monkeypatch):
    drawn, call = [], type(pipeline).__call__

    def recorded(self, texts, *, seed, pruning, **options):
        drawn.append((type(pruning).__name__, list(zip(texts, seed, strict=True))))
        return call(self, texts, seed=seed, pruning=pruning, **options)

    monkeypatch.setattr(type(pipeline), "__call__", recorded)
    done = []
    found = calibrate_recovery(pipeline, PROMPTS, StepVAR(LATE), advance=lambda part, name: done.append(part))
    seen = {pair for kind, pairs in drawn if kind == "Observed" for pair in pairs}
    measured = {pair for kind, pairs in drawn if kind != "Observed" for pair in pairs}
    assert len(seen) == found.prompts == 6 and len(measured) == found.after.n == 2
    assert not seen & measured and sum(done) == pytest.approx(1.0)
    assert found.change.value == pytest.approx(found.after.value - found.before.value)
    assert found.as_json()["pruning"]["recovery"]["name"] == "calibrated"


@pytest.mark.parametrize(
    ("method", "prompts", "words"),
    [
        (StepVAR(LATE), PROMPTS[:7], "needs 8 prompts or more; there are 7"),
        (StepVAR(skip=(-1,)), PROMPTS, "prunes no tokens, so there is nothing to recover"),
        (StepVAR(LATE, stages=2), PROMPTS, "is fitted for one narrowing, and stages is 2"),
    ],
)
def test_what_cannot_be_fitted_is_refused(pipeline, method, prompts, words):
    with pytest.raises(ValueError, match=words):
        calibrate_recovery(pipeline, prompts, method)
