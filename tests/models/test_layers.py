"""What the models share: a chain of element-wise steps is the same in pieces and at once."""

from __future__ import annotations

import pytest
import torch

from stepvar.models.common.layers import apply_in_chunks, rotary_table_2d, rotate
from stepvar.models.hart.transformer import rotary_halves_table, rotate_halves

ROWS, TOKENS, HEADS, CHANNELS = 2, 1300, 3, 16
"""More tokens than two pieces hold, and no whole number of pieces."""


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(ROWS, TOKENS, 2, HEADS, CHANNELS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_tokens_are_rotated_as_all_of_them_at_once(
    inputs: torch.Tensor, dtype: torch.dtype
) -> None:
    inputs = inputs.to(dtype)
    numbers = torch.arange(TOKENS)
    table = rotary_table_2d(numbers // 40, numbers % 40, CHANNELS)[None]

    rotated = apply_in_chunks(rotate, inputs, table)

    assert rotated.dtype == dtype
    assert torch.equal(rotated, rotate(inputs.float(), table).to(dtype))


def test_every_row_may_have_places_of_its_own(inputs: torch.Tensor) -> None:
    angles = torch.rand(ROWS, TOKENS, CHANNELS // 2, generator=torch.Generator().manual_seed(1))
    table = rotary_halves_table(angles, 2 * angles)

    turned = apply_in_chunks(rotate_halves, inputs, table)

    assert torch.equal(turned, rotate_halves(inputs, table))


def test_halves_of_one_angle_are_rotated(inputs: torch.Tensor) -> None:
    angles = torch.rand(1, TOKENS, CHANNELS // 2, generator=torch.Generator().manual_seed(1))

    turned = rotate_halves(inputs, rotary_halves_table(angles, angles))

    assert torch.allclose(turned.norm(dim=-1), inputs.norm(dim=-1), rtol=1e-5)
    rotary = torch.polar(torch.ones_like(angles), angles)[:, :, None, None]
    first, second = inputs.chunk(2, dim=-1)
    expected = torch.view_as_real(torch.complex(first, second) * rotary)
    assert torch.allclose(turned, torch.cat(expected.unbind(-1), dim=-1), atol=1e-6)


def test_pieces_have_gradients(inputs: torch.Tensor) -> None:
    inputs.requires_grad_()
    angles = torch.rand(1, TOKENS, CHANNELS // 2)
    table = rotary_halves_table(angles, angles)
    expected = torch.autograd.grad(rotate_halves(inputs, table).square().sum(), inputs)[0]

    (gradient,) = torch.autograd.grad(apply_in_chunks(rotate_halves, inputs, table).square().sum(), inputs)

    assert torch.allclose(gradient, expected, atol=1e-5)
