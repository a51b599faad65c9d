"""The list of models: a new one is a folder and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from stepvar.models import hart, infinity, infinitystar, switti, var
from stepvar.models.spec import ModelSpec

MODELS: tuple[ModelSpec, ...] = (infinity.SPEC, infinitystar.SPEC, var.SPEC, hart.SPEC, switti.SPEC)


def find_spec(keys: Iterable[str]) -> ModelSpec | None:
    """The model whose transformer has these keys in its state dict; None for none of them."""
    present = frozenset(keys)
    return next((spec for spec in MODELS if spec.matches(present)), None)
