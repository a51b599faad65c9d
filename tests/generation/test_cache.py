"""What self-attention remembers: the cache of inference and the block-causal view of training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional

from stepvar.generation.cache import BlockCausal, KVCache
from stepvar.pruning.stepvar import StepVAR
from tiny_models import draw, make_transformer

LENGTHS = (1, 4, 6, 9)


def random_heads(rows: int = 2, tokens: int = sum(LENGTHS)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 3, tokens, 8, generator=generator) for _ in range(3)]


def masked_attention(query, key, value) -> torch.Tensor:
    """One attention over the whole sequence, with the mask written out."""
    scale_of = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = scale_of[:, None] >= scale_of[None]
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.7)


def test_the_cache_attends_to_everything_so_far():
    query, key, value = random_heads()
    cache = KVCache([sum(LENGTHS)], 2, 3, 8, torch.float32, torch.device("cpu"))
    parts = [
        cache[0].attend(*(tensor.split(LENGTHS, dim=2)[index] for tensor in (query, key, value)), scale=0.7)
        for index in range(len(LENGTHS))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=2), masked_attention(query, key, value))
    assert cache[0].length == cache[0].capacity == sum(LENGTHS)


@pytest.mark.parametrize("shared_tokens", [0, LENGTHS[0], sum(LENGTHS[:2]), sum(LENGTHS)])
def test_block_causal_attention_equals_a_mask(monkeypatch, shared_tokens):
    monkeypatch.setattr(BlockCausal, "SHARED_TOKENS", shared_tokens)
    query, key, value = random_heads()
    attended = BlockCausal(LENGTHS).attend(query, key, value, scale=0.7)
    torch.testing.assert_close(attended, masked_attention(query, key, value))


@pytest.mark.parametrize("left", [slice(0, 2), slice(2, 4)])
def test_the_cache_goes_on_with_some_rows_when_the_others_are_released(left):
    query, key, value = random_heads(rows=4)
    cache = KVCache([sum(LENGTHS)], 4, 3, 8, torch.float32, torch.device("cpu"))
    parts = []
    for index, rows in enumerate((slice(0, 4), slice(0, 4), left, left)):
        cache.select(rows)
        pieces = (tensor.split(LENGTHS, dim=2)[index][rows] for tensor in (query, key, value))
        attended = cache[0].attend(*pieces, scale=0.7)
        parts.append(attended[left] if len(attended) == 4 else attended)
    expected = masked_attention(query, key, value)[left]
    torch.testing.assert_close(torch.cat(parts, dim=2), expected)


def test_a_cache_that_is_too_small_says_so():
    query, key, value = random_heads(tokens=5)
    cache = KVCache([4], 2, 3, 8, torch.float32, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="holds 4 tokens, but 5 were written"):
        cache[0].attend(query, key, value, scale=None)


@pytest.mark.parametrize(
    "pruning",
    [
        None,
        StepVAR(ratios={-2: 0.3, -1: 0.8}, first_layer=0),
        StepVAR(ratios={-1: 0.5}, first_layer=2),
        StepVAR(ratios={-2: 0.5}, skip=(-1, 2)),
    ],
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_cache_is_exactly_full_at_the_end(pruning, guidance):
    drawing = draw(make_transformer(depth=4), pruning=pruning, guidance=guidance)
    ran = [sum(column) for column in zip(*drawing.layer_tokens, strict=True)]
    assert drawing.cache_lengths == [(length, length) for length in ran]
    rows = 1 if guidance == 1.0 else 2
    assert drawing.result.cache_bytes == sum(ran) * rows * 64 * 2 * 4
    allocated = {layer.keys.untyped_storage().nbytes() for layer in drawing.session.cache.layers}
    # Keys and values of a layer share one allocation.
    assert allocated == {length * rows * 64 * 4 * 2 for length in ran}, "no memory beyond what is used"
