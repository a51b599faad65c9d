"""The list of models: a new one is a folder and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from stepvar.models import hart, infinity, infinitystar, switti, var, varedit
from stepvar.models.spec import ModelSpec

MODELS: tuple[ModelSpec, ...] = (
    infinity.SPEC,
    infinitystar.SPEC,
    var.SPEC,
    hart.SPEC,
    switti.SPEC,
    varedit.SPEC,
)


def find_spec(keys: Iterable[str], kind: str | None = None) -> ModelSpec | None:
    """The model whose transformer has these keys in its state dict; None for none of them.

    Args:
        keys: Of the state dict.
        kind: Key of a model that is asked for, where keys leave it open: one whose transformer is another
            one's with other weights.

    Raises:
        ValueError: When there is no such model, or these are another one's keys.
    """
    present = frozenset(keys)
    found = next((spec for spec in MODELS if spec.matches(present)), None)
    if kind is None or found is None:
        return found
    asked = next((spec for spec in MODELS if spec.key == kind), None)
    if asked is None:
        raise ValueError(
            f"Unknown kind of model {kind!r}; known are {', '.join(spec.key for spec in MODELS)}."
        )
    if found.key not in (asked.key, asked.same_weights_as):
        raise ValueError(f"This is {found.transformer_title}, not {asked.name}'s: leave the kind out.")
    return asked
