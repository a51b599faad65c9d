"""Attention backends by the names of diffusers: torch's own kernels, flex, flash attention from the hub."""

from __future__ import annotations

import sys

import torch.nn.functional as functional
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepvar.generation.attention import Kernel

NATIVE = "native"
"""torch's scaled_dot_product_attention, which chooses its kernel itself."""

_TORCH_KERNELS = {
    "_native_math": SDPBackend.MATH,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
}


def backend_title(backend: str) -> str:
    """A backend as `summary()` names it."""
    return "torch scaled_dot_product_attention" if backend == NATIVE else f"diffusers backend {backend}"


def active_backend() -> str:
    """The backend that diffusers uses where a model has none of its own.

    `with diffusers.attention_backend(...)` and the variable DIFFUSERS_ATTN_BACKEND set it.
    """
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    registry = getattr(dispatch, "_AttentionBackendRegistry", None)
    active = getattr(registry, "_active_backend", None)
    return str(getattr(active, "value", NATIVE))


def find_kernel(backend: str) -> Kernel | None:
    """The kernel of a backend; None is torch's own choice.

    Args:
        backend: Its name in diffusers: "native", "flex", "flash_hub", "_native_math", ...

    Raises:
        ValueError: When there is no such backend, or it cannot be used here.
    """
    if backend == NATIVE:
        return None
    if backend in _TORCH_KERNELS:
        return _torch_kernel(_TORCH_KERNELS[backend])
    return _diffusers_kernel(backend)


def _torch_kernel(chosen: SDPBackend) -> Kernel:
    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        with sdpa_kernel(chosen):
            return functional.scaled_dot_product_attention(query, key, value, scale=scale)

    return attend


def _diffusers_kernel(backend: str) -> Kernel:
    try:
        from diffusers.models import attention_dispatch as dispatch
    except ImportError as error:
        raise ValueError(
            f"The attention backend {backend!r} needs a diffusers with attention backends (0.35 or later); "
            f"{NATIVE!r} works with every version."
        ) from error
    names = sorted(entry.value for entry in dispatch.AttentionBackendName)
    if backend not in names:
        raise ValueError(f"Unknown attention backend {backend!r}; known are {', '.join(names)}.")
    chosen = dispatch.AttentionBackendName(backend)
    try:
        dispatch._check_attention_backend_requirements(chosen)
        dispatch._maybe_download_kernel_for_backend(chosen)
    except Exception as error:  # packages and hub kernels fail in many ways
        raise ValueError(
            f"The attention backend {backend!r} cannot be used here ({error}); {NATIVE!r} always can."
        ) from error

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        attended: Tensor = dispatch.dispatch_attention_fn(query, key, value, scale=scale, backend=chosen)
        return attended.transpose(1, 2)

    return attend
