"""Muon optimiser, in the number format of the weights.

torch's own orthogonalises in bfloat16, which a CPU without bfloat16 instructions emulates ten times slower
than it computes in float32.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the size of an
update matched to AdamW's as in Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn

from stepvar.training.common.precision import mixed_precision

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADAMW_SIZE = 0.2
"""Root mean square of a typical AdamW update, in learning rates."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices whose singular values are all about one, by Newton-Schulz iteration.

    Args:
        matrices: [n, rows, columns].
        steps: Iterations.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.transpose(1, 2)
    result = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, second, third = _COEFFICIENTS
    for _ in range(steps):
        gram = result @ result.transpose(1, 2)
        result = first * result + torch.baddbmm(gram, gram, gram, beta=second, alpha=third) @ result
    return result if wide is matrices else result.transpose(1, 2)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; matrices of one shape go through the iteration together.

    Args:
        parameters: Matrices, and filters of convolutions, which are matrices [outputs, everything else].
        lr: Learning rate that would suit AdamW.
        momentum: Of the gradient's moving average (Nesterov's form).
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all matrices that have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append((parameter, parameter.grad))
            for alike in by_shape.values():
                self._update(alike, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _update(
        self, pairs: list[tuple[nn.Parameter, Tensor]], lr: float, momentum: float, weight_decay: float
    ) -> None:
        directions = []
        for parameter, gradient in pairs:
            average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
            average.lerp_(gradient, 1.0 - momentum)
            directions.append(gradient.lerp(average, momentum))
        matrices = torch.stack(directions).flatten(2)
        with mixed_precision(matrices.device):
            updates = orthogonalise(matrices).float()
        size = _ADAMW_SIZE * math.sqrt(max(updates.shape[1:]))
        for (parameter, _), update in zip(pairs, updates, strict=True):
            parameter.mul_(1.0 - lr * weight_decay).add_(update.view(parameter.shape), alpha=-lr * size)
