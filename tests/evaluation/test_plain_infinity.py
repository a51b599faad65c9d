"""The plain implementation that our dense run is measured against computes the same numbers."""

from __future__ import annotations

import pytest
import torch

from plain_infinity import PlainInfinity
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.session import InfinitySession, TextCondition
from tiny_models import SMALL, make_text, make_transformer


@pytest.mark.parametrize("weights", [(3.0,) * 6, (3.0, 3.0, 1.0, 2.0, 1.0, 1.0), (1.0,) * 6])
def test_logits_and_codes_agree(weights):
    transformer = make_transformer()
    schedule = ScaleSchedule(tuple(SMALL), position_grid=(24, 20))
    positive = make_text(5, 3)
    guidance = Guidance(weights)
    negative = tuple(transformer.unconditional_text[: len(text)] for text in positive)
    condition = TextCondition(positive, negative if guidance.active else ())

    def sampler():
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        settings = SamplingSettings((0.7,) * 6, top_p=0.97)
        return BitSampler(settings, schedule, transformer.config.bits, generators, torch.device("cpu"))

    seen = []

    def probe(name, _scale, tensor):
        if name == "logits":
            seen.append(tensor)

    with torch.no_grad():
        session = InfinitySession(transformer, condition, schedule)
        ours = generate(session, guidance=guidance, sampler=sampler(), probe=probe)
    plain = PlainInfinity(transformer).generate(condition, schedule, guidance, sampler(), keep_logits=True)
    for left, right in zip(seen, plain.logits, strict=True):
        torch.testing.assert_close(left, right, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(ours.latent, plain.latent, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_contest_runs_and_agrees(dtype):
    from dense import Contest, build, cast, cut_schedule, measure

    transformer = cast(build("embedded", 2), getattr(torch, dtype))
    contest = Contest(transformer, cut_schedule(transformer, 4), images=2)
    result = measure(contest, repeats=1)
    assert result["plain"]["median"] > 0 and result["speedup"] > 0
    assert result["equal_codes"] > (0.999 if dtype == "float32" else 0.8)


def test_fastervar_as_its_authors_compute_it_agrees_with_ours():
    """The same random numbers in the same order: one picture, code by code."""
    from fastervar import PLANS, THEIRS, Rivals, measure
    from stepvar.pruning.fastervar import FasterVAR

    transformer = make_transformer(depth=4)
    contest = Rivals(transformer, ScaleSchedule(tuple(SMALL), position_grid=(24, 20)), text_tokens=5)
    theirs, ours = contest.theirs(), contest.plan(FasterVAR.published())
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert not torch.equal(ours, contest.plan(PLANS["its skips, no guidance"]))
    assert measure(contest, 1, [THEIRS, "FasterVAR"])["equal_codes"] == 1.0
