"""A cascade: one model drafts the early scales, another goes on; what it costs, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.generation.cascade import Cascade, FirstScales, generate_in_cascade
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, draw, make_text, make_transformer
from tiny_pipeline import SIDES, make_pipeline

GUIDANCE = Guidance((3.0,) * 6)


@pytest.fixture(scope="module")
def large():
    return make_transformer(seed=5, depth=4, width=96, heads=3)


def run(drafter, refiner, drafted: int, seeds=(0,), **arguments):
    texts = make_text(*[5] * len(seeds))

    def start(model) -> InfinitySession:
        negative = tuple(model.unconditional_text[:5] for _ in texts)
        return InfinitySession(model, TextCondition(texts, negative), SMALL)

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sampler = BitSampler(SamplingSettings((1.0,) * 6), SMALL, 4, generators, torch.device("cpu"))
    with torch.no_grad():
        return generate_in_cascade(
            start(drafter), start(refiner), drafted, guidance=GUIDANCE, sampler=sampler, **arguments
        )


@pytest.mark.parametrize("drafted", [1, 4, 5])
@pytest.mark.parametrize("pruning", [None, StepVAR(ratios={-1: 0.5}), FastVAR(ratios={-1: 0.5})])
def test_a_model_that_refines_itself_draws_its_own_picture(transformer, drafted, pruning):
    alone = draw(transformer, pruning=pruning)
    together = run(transformer, transformer, drafted, pruning=pruning)
    assert all(torch.equal(together.choices[scale], alone.result.choices[scale]) for scale in range(6))
    torch.testing.assert_close(together.latent, alone.result.latent)


def test_early_scales_are_the_drafters_and_late_ones_the_refiners(transformer, large):
    drafts, own, together = draw(large), draw(transformer), run(large, transformer, 3)
    for scale in range(3):
        assert torch.equal(together.choices[scale], drafts.result.choices[scale])
        assert not torch.equal(together.choices[scale], own.result.choices[scale])
    forced = {**drafts.result.choices, **together.choices}
    read = draw(transformer, forced=forced)
    torch.testing.assert_close(together.latent, read.result.latent)


def test_known_values_are_read_not_drawn(transformer):
    alone = draw(transformer)
    session = alone.session
    fresh = InfinitySession(
        transformer, TextCondition(make_text(5), (transformer.unconditional_text[:5],)), SMALL
    )

    class Refusing:
        def temperature(self, scale):
            return 1.0

        def sample(self, logits, scale):
            raise AssertionError("everything is known")

    with torch.no_grad():
        result = generate(fresh, guidance=GUIDANCE, sampler=Refusing(), prefix=alone.result.choices)
    torch.testing.assert_close(result.latent, session.latent)


def test_every_scale_is_reported_once_and_one_cache_lives_at_a_time(transformer, large):
    heard = []
    together = run(large, transformer, 3, observer=heard.append)
    assert [report.plan.scale.index for report in heard] == list(range(6))
    assert not any(report.plan.skipped for report in heard)
    assert [report.rows for report in together.scales] == [2] * 6
    refiner = draw(transformer).result.cache_bytes
    drafter = draw(large, pruning=FirstScales(3)).result.cache_bytes
    assert together.cache_bytes == max(refiner, drafter)


def test_a_batch_equals_single_runs(transformer, large):
    batch = run(large, transformer, 3, seeds=(4, 9))
    again = run(large, transformer, 3, seeds=(4, 9))
    assert torch.equal(batch.latent, again.latent)
    single = run(large, transformer, 3, seeds=(4,))
    assert all(torch.equal(batch.choices[scale][:1], single.choices[scale]) for scale in range(6))


def test_models_of_two_tokenizers_are_refused(transformer):
    with pytest.raises(ValueError, match="needs two models of one visual tokenizer"):
        run(make_transformer(bits=8), transformer, 3)


@pytest.mark.parametrize("count", [0, 6, 7])
def test_at_least_one_scale_is_drafted_and_one_is_not(count):
    with pytest.raises(ValueError, match=rf"{count} of 6 scales cannot be drafted: draft 1 to 5"):
        FirstScales(count).plan(SMALL, 3)


@pytest.fixture(scope="module")
def pipelines():
    refiner, drafter = make_pipeline(0), make_pipeline(7)
    drafter.vae = refiner.vae
    return drafter, refiner


PROMPT = "a red star on grass"


def test_pipelines_work_together(pipelines):
    drafter, refiner = pipelines
    cascade = Cascade(drafter, 4)
    output = refiner(PROMPT, seed=3, cascade=cascade, pruning=StepVAR(ratios={-1: 0.5}), output_type="latent")
    report = output.report
    drafts = drafter(PROMPT, seed=3, output_type="latent").report.choices
    assert all(torch.equal(report.choices[scale], drafts[scale]) for scale in range(4))
    assert not torch.equal(report.choices[4], drafts[4])
    assert report.settings["cascade"]["scales"] == 4
    summary = refiner.summary(StepVAR(ratios={-1: 0.5}), cascade=cascade)
    assert summary.cache_bytes * report.scales[0].rows == report.cache_bytes * summary.costs[0].rows
    assert len(report.scales) == len(SIDES)


def test_costs_are_those_of_both(pipelines):
    drafter, refiner = pipelines
    summary = refiner.summary(cascade=Cascade(drafter, 4))
    first, second = drafter.summary().costs, refiner.summary().costs
    assert [cost.flops for cost in summary.costs] == [
        second[scale].flops + (first[scale].flops if scale < 4 else 0) for scale in range(6)
    ]
    assert summary.dense_flops == drafter.summary().flops


def test_pipelines_that_cannot_work_together_are_refused_in_words(pipelines):
    drafter, refiner = pipelines
    cascade = Cascade(drafter, 4)
    with pytest.raises(ValueError, match="with the same visual tokenizer"):
        refiner(PROMPT, cascade=Cascade(make_pipeline(8), 4))
    with pytest.raises(ValueError, match="with the same visual tokenizer"):
        refiner(PROMPT, cascade=Cascade("VAR-d30", 4))
    with pytest.raises(ValueError, match=r"6 of 6 scales cannot be drafted"):
        refiner.summary(cascade=replace(cascade, scales=6))
    with pytest.raises(ValueError, match="Guidance inside the layers of a model cannot be shared"):
        refiner(PROMPT, cascade=cascade, guidance_layers=(-1,))
    for pruning in (StepVAR(ratios={-3: 0.5}), StepVAR(skip=(-3,))):
        with pytest.raises(
            ValueError, match=r"Scale 4x4 is drafted, so it can be neither pruned nor skipped"
        ):
            refiner(PROMPT, cascade=cascade, pruning=pruning)
