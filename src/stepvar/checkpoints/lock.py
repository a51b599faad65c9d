"""The lock around loading: building and filling a model is one step, whatever other threads load."""

from __future__ import annotations

from threading import RLock

LOADING = RLock()
"""Held while a model is built or loaded: the libraries replace functions of `torch.nn` in that time, so a
second load in another thread would leave its tensors on the meta device."""
