"""Switti's attention, written out."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from stepvar.generation.cache import NoCache
from tiny_switti import make_switti


@torch.no_grad()
def test_queries_and_keys_have_an_epsilon_of_their_own():
    attention = make_switti(norm_eps=0.1).blocks[0].self_attention
    hidden = 0.05 * torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    query, key, value = functional.linear(hidden, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    query, key = (
        (part - part.mean(-1, keepdim=True)) / (part.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        for part in (query, key)
    )
    heads = [part.unflatten(-1, (2, 24)).transpose(1, 2) for part in (query, key, value)]
    weights = (heads[0] @ heads[1].mT / 24**0.5).softmax(-1)
    expected = attention.output((weights @ heads[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(hidden, None, NoCache()), expected, rtol=1e-4, atol=1e-5)
