"""Training VAR: what teacher forcing and generation share, and that a few steps learn."""

from __future__ import annotations

import pytest
import torch

from stepvar.models.common.vector_quantizer import map_tokens
from stepvar.models.var.training import (
    drop_classes,
    init_weights,
    teacher_forced_logits,
    token_losses,
)
from tiny_var import CODES, SIDES, draw_var, indices, make_var, make_vq_vae

GRIDS = [(side, side) for side in SIDES]


def teacher_inputs(index: list[torch.Tensor]) -> list[torch.Tensor]:
    latents = make_vq_vae().quantizer.partial_latents(index, GRIDS)
    return [map_tokens(latent, grid) for latent, grid in zip(latents[:-1], GRIDS[1:], strict=True)]


@pytest.mark.parametrize("shares_modulation", [True, False])
def test_teacher_forcing_predicts_what_generation_predicted(shares_modulation):
    model = make_var(shares_modulation=shares_modulation)
    drawing = draw_var(model, [2, 4], [1, 2], strength=0.0)
    index = [indices(drawing)[scale] for scale in range(len(SIDES))]
    logits = teacher_forced_logits(model, torch.tensor([2, 4]), teacher_inputs(index))
    for scale, predicted in enumerate(logits):
        torch.testing.assert_close(predicted, drawing.tensors["logits", scale], rtol=1e-3, atol=1e-3)


def test_fewer_inputs_run_fewer_scales():
    model = make_var()
    index = [torch.zeros(1, side**2, dtype=torch.long) for side in SIDES]
    few = teacher_forced_logits(model, torch.tensor([0]), teacher_inputs(index)[:2])
    assert [part.shape[1] for part in few] == [side**2 for side in SIDES[:3]]


def test_dropped_classes_become_the_unconditional_one():
    classes, dropped = torch.tensor([0, 3, 5]), torch.tensor([False, True, False])
    assert drop_classes(classes, dropped, make_var()).tolist() == [0, 6, 5]


@pytest.mark.parametrize("shares_modulation", [True, False])
def test_a_fresh_model_knows_nothing_and_a_few_steps_learn(shares_modulation):
    torch.manual_seed(0)
    model = make_var(shares_modulation=shares_modulation, depth=2).requires_grad_(True)
    init_weights(model)
    index = [torch.randint(CODES, (4, side**2)) for side in SIDES]
    inputs, classes = teacher_inputs(index), torch.arange(4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = token_losses(teacher_forced_logits(model, classes, inputs), index).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(torch.tensor(float(CODES)).log().item(), abs=0.1)
    assert losses[-1] < losses[0] - 0.3
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    assert missing == []


def test_label_smoothing_costs_certainty():
    logits = [torch.full((1, 1, 3), -10.0)]
    logits[0][..., 0] = 10.0
    index = [torch.zeros(1, 1, dtype=torch.long)]
    assert token_losses(logits, index).shape == (1, 1)
    assert float(token_losses(logits, index)) < 1e-6
    assert float(token_losses(logits, index, 0.1)) > 1.0
