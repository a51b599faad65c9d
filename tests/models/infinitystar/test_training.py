"""Teacher forcing: what training computes in one pass is what generation computes step by step."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.models.common.training import bit_losses
from stepvar.models.infinitystar.quantizer import quantize
from stepvar.models.infinitystar.session import InfinityStarSession, TextPrefix
from stepvar.models.infinitystar.training import init_weights, teacher_forced_logits, teacher_inputs
from stepvar.pruning.stepvar import StepVAR
from tiny_star import STEPS_OF_CLIP, STEPS_OF_PICTURE, TEXT_CHANNELS, make_star_transformer


@pytest.fixture(scope="module")
def model():
    return make_star_transformer()


@pytest.fixture(scope="module")
def schedule(model):
    [template] = model.sizes.templates
    return model.sizes.schedule(template, 9)


class Forced:
    """Draws given bits, and remembers the logits that it was to draw from."""

    def __init__(self, bits):
        self.bits, self.logits = bits, {}

    def temperature(self, scale):
        return 1.0

    def sample(self, logits, scale):
        self.logits[scale.index] = logits
        return self.bits[scale.index]


def make_text(*lengths):
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(length, TEXT_CHANNELS, generator=generator) for length in lengths]


def quantized(schedule, videos=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        latent = torch.randn(videos, 64, schedule.latent_frames, *schedule.position_grid)
        return list(quantize(latent, schedule, torch.full((videos,), 0.2)))


def generated_logits(model, schedule, text, steps, row, pruning=None):
    """By step, what a generation predicts that draws the bits of a row of `steps`."""
    sampler = Forced([step.used_bits[row : row + 1] for step in steps])
    session = InfinityStarSession(model, TextPrefix(text[row]), schedule)
    with torch.no_grad():
        generate(session, guidance=Guidance((1.0,) * len(schedule)), sampler=sampler, pruning=pruning)
    return sampler.logits


def trained_logits(model, schedule, text, steps, **arguments):
    with torch.no_grad():
        scales = [step.scale for step in steps]
        return teacher_forced_logits(model, text, teacher_inputs(steps), scales, schedule, **arguments)


@pytest.mark.parametrize("lengths", [(5,), (6, 6), (3, 7)])
def test_teacher_forced_logits_are_those_of_generation(model, schedule, lengths):
    text, steps = make_text(*lengths), quantized(schedule, len(lengths))
    logits = trained_logits(model, schedule, text, steps)
    assert len(logits) == len(schedule)
    for row in range(len(lengths)):
        expected = generated_logits(model, schedule, text, steps, row)
        for scale in schedule:
            found = logits[scale.index][row : row + 1]
            assert found.shape == (1, scale.tokens, scale.bits, 2)
            torch.testing.assert_close(found, expected[scale.index], rtol=1e-3, atol=2e-4)


def test_steps_that_are_left_out_are_skipped_steps(model, schedule):
    text, steps = make_text(4), quantized(schedule)
    skipped = {STEPS_OF_PICTURE - 1, STEPS_OF_PICTURE + STEPS_OF_CLIP - 1, len(schedule) - 1}
    plan = StepVAR(skip=tuple(sorted(index - len(schedule) for index in skipped)))
    expected = generated_logits(model, schedule, text, steps, 0, plan)
    run = [step for step in steps if step.scale.index not in skipped]
    logits = trained_logits(model, schedule, text, run)
    assert len(expected) == len(run) == len(logits)
    for step, found in zip(run, logits, strict=True):
        torch.testing.assert_close(found, expected[step.scale.index], rtol=1e-3, atol=2e-4)


def test_a_clip_sees_the_last_step_of_the_clip_before_and_no_other(model, schedule):
    text, steps = make_text(4), quantized(schedule)
    plain = trained_logits(model, schedule, text, steps)

    def changed(index):
        before = steps[index].before + 1.0
        moved = [replace(step, before=before) if step.scale.index == index else step for step in steps]
        logits = trained_logits(model, schedule, text, moved)
        pairs = enumerate(zip(plain, logits, strict=True))
        return {place for place, (left, right) in pairs if not torch.allclose(left, right, atol=1e-5)}

    assert changed(STEPS_OF_PICTURE - 2) == {STEPS_OF_PICTURE - 2}
    last = STEPS_OF_PICTURE - 1
    assert changed(last) == set(range(last, len(schedule)))


def test_kept_tokens_that_are_all_tokens_change_nothing(model, schedule):
    text, steps = make_text(3, 6), quantized(schedule, 2)
    kept = [torch.arange(scale.tokens).expand(2, -1) if scale.tokens > 4 else None for scale in schedule]
    whole = trained_logits(model, schedule, text, steps)
    for left, right in zip(whole, trained_logits(model, schedule, text, steps, kept=kept), strict=True):
        torch.testing.assert_close(left, right)


def test_kept_tokens_are_those_asked_for(model, schedule):
    text, steps = make_text(5), quantized(schedule)
    last = len(schedule) - 1
    order = torch.randperm(schedule[last].tokens, generator=torch.Generator().manual_seed(1))[None]
    kept = [None] * last + [order]
    whole, some = (trained_logits(model, schedule, text, steps, **more) for more in ({}, {"kept": kept}))
    torch.testing.assert_close(some[last], whole[last][:, order[0]], rtol=1e-4, atol=1e-4)


def test_a_fresh_model_learns_to_repeat_a_video(schedule):
    torch.manual_seed(0)
    fresh = make_star_transformer().requires_grad_(True)
    init_weights(fresh)
    text, steps = make_text(4), quantized(schedule)
    labels = [step.bits for step in steps]
    optimiser = torch.optim.AdamW(fresh.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        logits = teacher_forced_logits(fresh, text, teacher_inputs(steps), schedule.scales, schedule)
        loss = bit_losses(logits, labels).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    # A fresh model knows nothing: about one bit of surprise a bit, which is ln 2.
    assert losses[0] == pytest.approx(0.69, abs=0.05)
    assert losses[-1] < 0.8 * losses[0]


def test_flipped_bits_enter_the_sum_but_not_the_labels(schedule):
    latent = torch.randn(2, 64, schedule.latent_frames, *schedule.position_grid)
    flip = torch.tensor([0.0, 0.5])
    plain, damaged = list(quantize(latent, schedule)), list(quantize(latent, schedule, flip))
    for left, right in zip(plain, damaged, strict=True):
        assert torch.equal(left.bits, left.used_bits)
        for field in fields(left)[1:]:
            assert torch.equal(getattr(left, field.name)[0], getattr(right, field.name)[0])
    shares = torch.cat([(step.bits != step.used_bits)[1].flatten().float() for step in damaged])
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
