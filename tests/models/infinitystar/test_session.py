"""The exact savings: known clips, forgotten keys and pieces change no number; and what a step depends on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.generation.guidance import Guidance, ProjectedGuidance
from stepvar.generation.loop import generate
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.sampling import BitSampler, SamplingSettings
from stepvar.models.infinitystar import transformer as transformer_module
from stepvar.models.infinitystar.quantizer import quantize
from stepvar.models.infinitystar.session import InfinityStarSession, KnownClips, TextPrefix
from stepvar.pruning.stepvar import StepVAR
from tiny_star import STEPS_OF_CLIP, STEPS_OF_PICTURE, make_star_transformer, make_text_prefix

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return make_star_transformer()


def schedule_of(model, frames=9):
    [template] = model.sizes.templates
    return model.sizes.schedule(template, frames)


def draw(model, schedule=None, sampler=None, known=None, text=None, guidance=None, pruning=None, seed=0):
    schedule = schedule or schedule_of(model)
    text = text or make_text_prefix()
    session = InfinityStarSession(model, text, schedule, known)
    if sampler is None:
        settings = SamplingSettings((0.7,) * len(schedule))
        bits = [scale.bits for scale in schedule]
        sampler = BitSampler(settings, schedule, bits, [torch.Generator().manual_seed(seed)], CPU)
    guidance = guidance or ProjectedGuidance((5.0,) * len(schedule), threshold=0.1)
    with torch.no_grad():
        result = generate(session, guidance=guidance, sampler=sampler, pruning=pruning)
    return session.video(), result


class Given:
    """Returns given bits at the first steps, and draws the others as a sampler of a longer schedule would."""

    def __init__(self, sampler, bits, offset=0):
        self.sampler, self.bits, self.offset = sampler, bits, offset

    def temperature(self, scale):
        return 0.7

    def sample(self, logits, scale):
        place = scale.index + self.offset
        if scale.given:
            return None
        if place < len(self.bits):
            return self.bits[place]
        return self.sampler.sample(logits, replace(scale, index=place))


@pytest.mark.parametrize("clips", [1, 2])
def test_known_clips_need_one_step_each_and_change_nothing(model, clips):
    whole = schedule_of(model)
    [template] = model.sizes.templates
    frames = sum(whole.clips[:clips])
    latent = torch.randn(1, 64, frames, 3, 5, generator=torch.Generator().manual_seed(4))
    steps = list(quantize(latent, model.sizes.schedule(template, frames)))
    last = [step for step in steps if step.scale.ends_clip]
    known = KnownClips(tuple(step.before for step in last), tuple(step.after for step in last))
    bits = [scale.bits for scale in whole]
    settings = SamplingSettings((0.7,) * len(whole))
    noise = BitSampler(settings, whole, bits, [torch.Generator().manual_seed(5)], CPU)
    given = [step.bits for step in steps]
    slow, _ = draw(model, whole, Given(noise, given))
    rest = whole.without_known(clips)
    fast, result = draw(model, rest, Given(noise, given, len(whole) - len(rest)), known)
    assert len(result.choices) == len(whole) - len(given) + clips
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


def test_nothing_but_what_a_later_clip_sees_is_kept(model):
    _, result = draw(model)
    # A layer keeps the text, a map of 3 x 5 and one of 4 x 3 x 5 tokens; all share the longest step's room.
    config = model.config
    per_token = 2 * 2 * config.key_heads * model.head_dim * 4
    longest = 5 + 60 + 60
    assert result.cache_bytes == per_token * (config.depth * (5 + 15 + 60) + longest)


def test_a_layer_in_pieces_gives_the_same(model, monkeypatch):
    whole, _ = draw(model, seed=2)
    monkeypatch.setattr(transformer_module, "TOKENS_AT_ONCE", 14)
    pieces, _ = draw(model, seed=2)
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=0)


def test_a_clip_depends_on_the_text_and_on_the_clip_before(model):
    schedule = schedule_of(model)
    base, result = draw(model, seed=3)
    other_text, _ = draw(model, text=make_text_prefix(seed=1), seed=3)
    assert not torch.equal(base[:, :, :1], other_text[:, :, :1])
    bits = dict(result.choices)
    changed = [bits[index].clone() for index in range(STEPS_OF_PICTURE)]
    changed[-1] = ~changed[-1]
    noise = BitSampler(
        SamplingSettings((0.7,) * len(schedule)),
        schedule,
        [scale.bits for scale in schedule],
        [torch.Generator().manual_seed(3)],
        CPU,
    )
    # The last bits of the picture come after its keys: the next clip does not see them, as officially.
    after, _ = draw(model, schedule, Given(noise, changed))
    assert torch.equal(after[:, :, 1:], base[:, :, 1:])
    changed[-2] = ~changed[-2]
    before, _ = draw(model, schedule, Given(noise, changed))
    assert not torch.equal(before[:, :, 1:], base[:, :, 1:])


def test_unguided_steps_leave_the_second_copy_out(model):
    weights = (5.0,) * STEPS_OF_PICTURE + (1.0,) * (2 * STEPS_OF_CLIP)
    released, result = draw(model, guidance=Guidance(weights), seed=1)
    carried, _ = draw(model, guidance=Guidance(weights, release=False), seed=1)
    assert {report.rows for report in result.scales[STEPS_OF_PICTURE:]} == {1}
    torch.testing.assert_close(released, carried, atol=1e-5, rtol=0)


def test_a_longer_negative_text_is_refused():
    with pytest.raises(ValueError, match="The negative prompt has 4 tokens and the prompt 3"):
        TextPrefix(torch.zeros(3, 8), torch.zeros(4, 8))


def test_projected_guidance_is_bounded_and_across_the_prediction():
    guidance = ProjectedGuidance((34.0,), threshold=0.05)
    paired = torch.randn(2, 7, 5, 2, generator=torch.Generator().manual_seed(0))
    conditional = paired[:1]
    update = guidance.mix(0, paired) - conditional
    assert float(update.square().mean().sqrt()) <= 33 * 0.05 + 1e-5
    assert abs(float((update * conditional).sum())) < 1e-3
    # Every image of a batch has a statistic of its own.
    both = torch.cat([paired[:1], 3 * paired[1:], paired[1:], paired[:1]])
    torch.testing.assert_close(guidance.mix(0, both)[:1], guidance.mix(0, paired))


def test_pruned_steps_run_fewer_tokens_and_leave_fewer_keys(model):
    pruning = StepVAR(ratios={-8: 0.5, -1: 0.75}, first_layer=1)
    dense, whole = draw(model, seed=6)
    pruned, result = draw(model, pruning=pruning, seed=6)
    schedule = schedule_of(model)
    assert schedule[-8].ends_clip
    assert [report.plan.kept for report in result.scales if report.kept_index is not None] == [30, 15]
    assert result.cache_bytes < whole.cache_bytes
    assert torch.equal(pruned[:, :, :1], dense[:, :, :1])
    assert not torch.equal(pruned[:, :, 5:], dense[:, :, 5:])


def test_a_skipped_last_step_leaves_the_step_before_to_the_next_clip(model):
    skipped, result = draw(model, pruning=StepVAR(skip=(-8,)), seed=6)
    assert skipped.shape == (1, 64, 9, 3, 5)
    assert STEPS_OF_PICTURE + STEPS_OF_CLIP - 1 not in result.choices
    assert torch.isfinite(skipped).all()


def test_every_step_is_planned_densely_without_a_method(model):
    schedule = schedule_of(model)
    plan = GenerationPlan.dense(schedule, model.config.depth)
    assert len(plan.scales) == STEPS_OF_PICTURE + 2 * STEPS_OF_CLIP
    assert not plan.changes
