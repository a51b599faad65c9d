"""Comparison of computed tensors with stored ones, and the report of a case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest absolute error, in units of max(1, largest stored value), of a float32 tensor."""

BYTE_SHARE = 1e-3
"""Share of the values of an 8-bit picture that may differ, and then only by 1."""


@dataclass(frozen=True)
class TensorError:
    """How far one computed tensor is from the stored one.

    Attributes:
        max_abs: Largest absolute error; infinite for another shape.
        max_rel: The same in units of the largest stored value.
        passed: Whether it is within the tolerance.
        note: What went wrong when no error could be computed.
    """

    max_abs: float
    max_rel: float
    passed: bool
    note: str = ""


def compare(
    computed: Tensor,
    stored: Tensor,
    picture: bool = False,
    relative: float | None = None,
    tolerance: float = TOLERANCE,
) -> TensorError:
    """Compares a computed tensor with a stored one.

    Integers and bits must be identical, except that 8-bit pictures may differ by 1 in a share of
    `BYTE_SHARE` of their values.

    Args:
        picture: Whether integers are such a picture.
        relative: Largest error in units of the largest stored value, instead of `TOLERANCE`: shows what is
            wrong in small values too.
        tolerance: Largest absolute error, in units of max(1, largest stored value).
    """
    if computed.shape != stored.shape:
        shapes = f"computed {list(computed.shape)}, stored {list(stored.shape)}"
        return TensorError(float("inf"), float("inf"), False, f"shapes differ: {shapes}")
    if not stored.numel():
        return TensorError(0.0, 0.0, True)
    computed, exact = computed.double(), stored.double()
    # A masked logit is infinite on both sides.
    difference = torch.where(computed == exact, 0.0, (computed - exact).abs())
    if not torch.isfinite(difference).all():
        return TensorError(float("inf"), float("inf"), False, "values are not finite")
    largest = float(exact[torch.isfinite(exact)].abs().amax()) if torch.isfinite(exact).any() else 0.0
    max_abs = float(difference.max())
    if stored.is_floating_point():
        allowed = tolerance * max(1.0, largest) if relative is None else relative * largest
        # What was stored in fewer bits was rounded to them.
        rounding = torch.finfo(stored.dtype).eps / 2 * exact.abs().nan_to_num(posinf=0.0)
        passed = bool((difference <= allowed + rounding * (stored.dtype.itemsize < 4)).all())
    elif picture:
        passed = max_abs <= 1 and float((difference > 0).double().mean()) < BYTE_SHARE
    else:
        passed = max_abs == 0
    return TensorError(max_abs, max_abs / largest if largest else max_abs, passed)


@dataclass
class CaseReport:
    """What came of one golden case.

    Attributes:
        case: The folder.
        tensors: Errors by tensor name.
        inputs: Stored tensors that were used as inputs, and so have nothing to be compared with.
        uncompared: Stored tensors that were neither compared nor used.
    """

    case: str
    tensors: dict[str, TensorError] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    uncompared: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Everything was compared, and within tolerance."""
        return bool(self.tensors) and not self.uncompared and all(e.passed for e in self.tensors.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "passed": self.passed,
            "tensors": {
                name: {
                    "max_abs": error.max_abs,
                    "max_rel": error.max_rel,
                    "passed": error.passed,
                    **({"note": error.note} if error.note else {}),
                }
                for name, error in self.tensors.items()
            },
            "inputs": self.inputs,
            "uncompared": self.uncompared,
        }
