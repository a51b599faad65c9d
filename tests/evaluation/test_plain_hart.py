"""The plain HART that our dense run is measured against computes the same numbers; the contest runs."""

from __future__ import annotations

import pytest
import torch

from plain_hart import PlainHART
from stepvar.generation.loop import generate
from stepvar.generation.plan import ScalePlan
from stepvar.generation.sampling import CodebookSampler
from stepvar.generation.schedule import Scale
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import scale_schedule
from stepvar.models.hart.text import ContextFeatures
from tiny_hart import GRIDS, make_context, make_hart, make_vae


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_logits_and_codes_agree(guidance):
    transformer, quantizer, schedule = make_hart(), make_vae().quantizer, scale_schedule(GRIDS)
    guide, device = make_guidance(guidance, schedule), torch.device("cpu")
    condition = make_context(5, 3)
    if guide.active:
        condition = condition.joined(ContextFeatures.empty(*condition.features.shape, device))

    def sampler():
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        settings = make_sampling(schedule, 1.0, 20, 0.9, smooth=True)
        return CodebookSampler(settings, schedule, quantizer.codebook.weight, generators, device)

    noise = draw_residual_noise([torch.Generator().manual_seed(seed) for seed in (3, 4)], 64, 4, 3, device)
    residual = ResidualDraw(noise, guide.weights[-1] - 1.0)
    seen = []

    def probe(name, _scale, value):
        if name == "logits":
            seen.append(value)

    with torch.no_grad():
        session = HARTSession(transformer, quantizer, condition, 2, schedule, residual)
        ours = generate(session, guidance=guide, sampler=sampler(), probe=probe)
    plain = PlainHART(transformer, quantizer).generate(
        condition, 2, schedule, guide, sampler(), residual, keep_logits=True
    )
    for left, right in zip(seen, plain.logits, strict=True):
        torch.testing.assert_close(left, right, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours.latent, plain.latent, atol=1e-3, rtol=0)


def test_other_kinds_of_blocks_are_refused():
    with pytest.raises(ValueError, match="published kind"):
        PlainHART(make_hart(modulation="table"), make_vae().quantizer)


def test_the_contest_runs_and_agrees():
    from hart import METHODS, Contest, build, measure, table

    told = measure(Contest(build(2, tiny=True), images=2), 1, depth=4)
    contestants = told["contestants"]
    assert contestants.keys() == {"official arithmetic", "dense", *METHODS}
    assert told["equal_codes"] > 0.99
    for name, entry in contestants.items():
        pruned = name in METHODS
        assert ("kept" in entry) == pruned and ("all" in entry) == (name != "FastVAR")
        assert (entry["choosing"]["median"] > 0) == pruned
        assert 0 < entry["late scales"]["median"] < entry["picture"]["median"] > entry["run"]["median"]
        assert (sum(entry["flops"]) < sum(contestants["dense"]["flops"])) == pruned
    shown = table(told, 2, 4).splitlines()
    assert shown[0] == "| | official arithmetic | dense | StepVAR | FastVAR |"
    assert all(line.count("|") == 6 for line in shown[2:])


def test_the_whole_depth_is_added_up_from_parts():
    from hart import Clock, scale_seconds

    clock = Clock(torch.device("cpu"))
    clock.parts |= {(3, "outside"): 1.0, (3, "choosing"): 0.5, (3, "layer 0"): 0.2, (3, "layer 1"): 0.1}
    scale = Scale(3, 4, 4)
    measured = ScalePlan(scale, kept=8, first_layer=1, last_layer=2)
    wanted = ScalePlan(scale, kept=8, first_layer=2, last_layer=24)
    assert scale_seconds(clock, measured, wanted, 2, 24) == pytest.approx(1.5 + 2 * 0.2 + 22 * 0.1)
    assert scale_seconds(clock, measured, measured, 2, 2) == pytest.approx(1.8)
