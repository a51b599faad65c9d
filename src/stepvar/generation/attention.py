"""Attention: the one function that every model and memory calls, and the kernel that computes it.

Shapes: R rows, H heads of queries, H' heads of keys and values, N queries, M keys, c channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as functional
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
"""Computes attention without a mask from query [R, H, N, c], key and value [R, H, M, c], and a scale."""

_KERNEL: ContextVar[Kernel | None] = ContextVar("attention_kernel", default=None)


@contextmanager
def attention_kernel(kernel: Kernel | None) -> Iterator[None]:
    """Computes attention by a kernel inside the `with` block; None is torch's own choice.

    Attention with a mask, as prompts of different lengths in a batch need it, stays with torch.
    """
    token = _KERNEL.set(kernel)
    try:
        yield
    finally:
        _KERNEL.reset(token)


def attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of query [R, H, N, c] to key and value [R, H', M, c]; returns [R, H, N, c].

    With fewer key heads H' than query heads, key head j serves the query heads j H / H' and following
    (grouped-query attention). No query sees another one, so a group is as good as a longer sequence:
    keys and values are never expanded, with any kernel.

    Args:
        scale: Of the products; 1 / sqrt(c) by default.
        mask: [R or 1, 1, 1 or N, M], True where a key may be seen; None keeps every fast kernel usable.
    """
    if query.shape[1] != key.shape[1]:
        groups = query.unflatten(1, (key.shape[1], -1))
        if mask is not None and mask.shape[-2] > 1:
            mask = mask.repeat(1, 1, groups.shape[2], 1)
        folded = attention(groups.flatten(2, 3), key, value, scale, mask)
        return folded.unflatten(2, groups.shape[2:4]).flatten(1, 2)
    if query.device.type == "cpu" and query.requires_grad:
        # torch's CPU kernel has a slow backward: written out, training steps take half the time.
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        products = (query * scale) @ key.transpose(-1, -2)
        if mask is not None:
            products = products.masked_fill(~mask, torch.finfo(products.dtype).min)
        return products.float().softmax(dim=-1).to(value.dtype) @ value
    # Compiled blocks have torch's own choice alone: the compiler cannot look a kernel up.
    kernel = None if torch.compiler.is_compiling() else _KERNEL.get()
    if kernel is not None and mask is None:
        return kernel(query, key, value, scale)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
