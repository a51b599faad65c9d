"""The diffusion head: its schedule, its guidance and its noise. Golden cases prove its arithmetic."""

from __future__ import annotations

import pytest
import torch

from stepvar.models.hart.diffusion import DiffusionNoise, DiffusionSchedule, kept_steps
from tiny_hart import make_hart


@pytest.fixture(scope="module")
def head():
    return make_hart().residual_head


def noise(tokens: int, steps: int = 3, seed: int = 0) -> DiffusionNoise:
    drawn = torch.randn(steps + 1, tokens, 4, generator=torch.Generator().manual_seed(seed))
    return DiffusionNoise(drawn[0], drawn[1:])


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ("8", [0, 143, 285, 428, 571, 714, 856, 999]),
        ("1", [0]),
        ("2,3", [0, 499, 500, 750, 999]),
    ],
)
def test_kept_steps(sections, expected):
    assert kept_steps(sections) == expected


@pytest.mark.parametrize("sections", ["", "eight", "0", "1001", "600,600"])
def test_impossible_steps_are_refused(sections):
    with pytest.raises(ValueError, match="diffusion steps"):
        kept_steps(sections)


def test_a_schedule_of_every_step_is_the_trained_one():
    schedule = DiffusionSchedule.respaced("1000")
    assert len(schedule) == 1000
    assert schedule.betas[-1] == pytest.approx(0.999)
    assert (schedule.alphas_cumprod[1:] < schedule.alphas_cumprod[:-1]).all()


def test_one_step_alone_is_possible():
    schedule = DiffusionSchedule.respaced("1")
    state, output = torch.full((1, 2), 0.5), torch.zeros(1, 4)
    assert schedule.previous(0, state, output, torch.ones(1, 2)).isfinite().all()


def test_results_are_bounded_and_belong_to_their_token(head):
    condition = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    drawn = head.sample(condition, noise(5))
    assert drawn.shape == (5, 4)
    assert drawn.abs().max() <= 0.6
    own = noise(5)
    alone = head.sample(condition[2:3], DiffusionNoise(own.initial[2:3], own.steps[:, 2:3]))
    torch.testing.assert_close(alone, drawn[2:3], rtol=0, atol=1e-5)


def test_guidance_of_zero_and_of_exactly_one_is_none(head):
    condition = torch.randn(10, 32, generator=torch.Generator().manual_seed(1))
    plain = head.sample(condition[:5], noise(5))
    assert torch.equal(head.sample(condition, noise(5), 0.0), plain)
    assert torch.equal(head.sample(condition, noise(5), 1.0), plain)
    near = head.sample(condition, noise(5), 1.0001)
    assert not torch.allclose(near, plain, atol=1e-3)
    assert torch.allclose(near, head.sample(condition, noise(5), 1.0002), atol=1e-2)


def test_equal_conditions_make_guidance_idle(head):
    condition = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    plain, guided = head.sample(condition[:5], noise(5)), head.sample(condition, noise(5), 3.0)
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-4)


def test_the_last_steps_noise_is_not_used(head):
    condition = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    first, second = noise(5), noise(5)
    second.steps[-1] += 1.0
    assert torch.equal(head.sample(condition, first), head.sample(condition, second))
    second.steps[0] += 1.0
    assert not torch.equal(head.sample(condition, first), head.sample(condition, second))


@torch.no_grad()
def test_the_number_of_a_step_is_embedded_once_as_if_for_every_token(head):
    condition = head.condition_embedding(torch.randn(14, 32, generator=torch.Generator().manual_seed(1)))
    state = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    numbers = torch.full((14,), float(head.schedule.timesteps[1]))
    conditional, unconditional = head(state.repeat(2, 1), head.embed_time(numbers), condition).chunk(2)
    noise = 3.0 * conditional[:, :4] - 2.0 * unconditional[:, :4]
    expected = torch.cat([noise, conditional[:, 4:]], dim=1)
    torch.testing.assert_close(head.predict(state, 1, condition, 2.0), expected, rtol=0, atol=1e-6)
