"""A cache whose steps do not see everything earlier, and attention with fewer key heads than query heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.generation.attention import attention
from stepvar.generation.cache import IsolatedMemory, KVCache, Span, Window

CPU = torch.device("cpu")


def heads(count: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(2, count, tokens, 8, generator=torch.Generator().manual_seed(seed))


def test_grouped_queries_equal_expanded_keys():
    query, key, value = heads(6, 5, 0), heads(2, 7, 1), heads(2, 7, 2)
    expanded = (part.repeat_interleave(3, dim=1) for part in (key, value))
    expected = functional.scaled_dot_product_attention(query, *expanded)
    torch.testing.assert_close(attention(query, key, value), expected)


@st.composite
def windows(draw) -> Window:
    count = draw(st.integers(1, 7))
    spans = [
        Span(step, draw(st.integers(1, 4)), draw(st.integers(step, count))) for step in range(-1, count - 1)
    ]
    return Window(tuple(spans))


@settings(max_examples=40, deadline=None)
@given(windows())
def test_every_step_sees_what_is_not_forgotten_and_nothing_else(window):
    cache = KVCache([window, window], 2, 2, 8, torch.float32, CPU)
    made = [
        (heads(2, span.tokens, 10 + place), heads(2, span.tokens, 90 + place))
        for place, span in enumerate(window.spans)
    ]
    for place, span in enumerate(window.spans):
        seen = [
            pair
            for earlier, pair in zip(window.spans[:place], made, strict=False)
            if earlier.kept and earlier.last_step >= span.step
        ]
        expected = [torch.cat(parts, dim=2) for parts in zip(*seen, made[place], strict=True)]
        for layer in (0, 1):
            for found, wanted in zip(cache[layer].extend(*made[place]), expected, strict=True):
                assert torch.equal(found, wanted)
        assert window.seen()[place] == expected[0].shape[2]


def test_keys_that_nobody_sees_take_no_room_in_a_layer():
    window = Window((Span(-1, 3, 9), Span(0, 50, 0), Span(1, 5, 2), Span(2, 40, 2)))
    assert window.capacity == 8
    assert window.longest == 53
    cache = KVCache([window] * 4, 1, 2, 8, torch.float32, CPU)
    assert cache.bytes == 4 * 2 * 2 * 8 * (4 * 8 + 53)


@pytest.mark.parametrize("row", [0, 1])
def test_fewer_rows_go_on_with_their_own_keys(row):
    cache = KVCache([Window((Span(-1, 3, 2), Span(0, 2, 0)))], 2, 2, 8, torch.float32, CPU)
    key = heads(2, 3, 0)
    cache[0].extend(key, key)
    left = slice(row, row + 1)
    cache.select(left)
    keys, _ = cache[0].extend(heads(2, 2, 1)[left], heads(2, 2, 2)[left])
    assert torch.equal(keys[:, :, :3], key[left])


def test_a_prefix_sees_itself_alone():
    cache = KVCache([Window((Span(-1, 3, 9), Span(-1, 2, 9), Span(0, 1, 0)))], 2, 2, 8, torch.float32, CPU)
    cache[0].extend(heads(2, 3, 0), heads(2, 3, 1))
    query, key, value = heads(2, 2, 2), heads(2, 2, 3), heads(2, 2, 4)
    seen = IsolatedMemory(cache[0]).attend(query, key, value, None)
    torch.testing.assert_close(seen, attention(query, key, value))
    assert cache[0].extend(heads(2, 1, 5), heads(2, 1, 6))[0].shape[2] == 6


def test_tokens_that_were_not_planned_are_refused():
    cache = KVCache([Window((Span(0, 2, 0),))], 2, 2, 8, torch.float32, CPU)
    with pytest.raises(RuntimeError, match="3 tokens came as number 0"):
        cache[0].extend(heads(2, 3, 0), heads(2, 3, 1))
