"""What golden cases of models with a codebook share: replayed draws, and the landmarks of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.conformance.case import Comparison
from stepvar.generation.sampling import (
    CodebookChoice,
    filter_logits,
    gumbel_softmax,
    smoothing_temperature,
)
from stepvar.generation.schedule import Scale

RELATIVE = 1e-4
"""Largest error in units of a tensor's largest value. Another order of sums gives a few 1e-6; mixtures at a
low temperature enlarge it tenfold."""


def watch(module: nn.Module, comparison: Comparison, name: str) -> Any:
    """Compares the output of a module with what is stored under a name."""
    return module.register_forward_hook(lambda _module, _inputs, output: comparison.check(name, output))


class ReplaySampler:
    """Draws as the official sampler does, then goes on with what is stored.

    So a flipped code shows at its own scale and does not blur the comparison of later ones.

    Args:
        comparison: Of the case.
        codebook: [V, D].
        seed: Of the official generator.
        top_k, top_p: Of the official call.
        smoothing: Progress of the scales whose codes are mixed, None at the others.
        filters_mixed: Whether mixed codes are filtered, and a code is drawn beside them.
        temperature: One a scale.
    """

    def __init__(
        self,
        comparison: Comparison,
        codebook: Tensor,
        seed: int | None,
        top_k: int,
        top_p: float,
        smoothing: Sequence[float | None],
        filters_mixed: bool = True,
        temperature: Sequence[float] | None = None,
    ) -> None:
        self.comparison = comparison
        self.codebook = codebook
        self.filters = (top_k, top_p)
        self.smoothing = smoothing
        self.filters_mixed = filters_mixed
        self.temperatures = temperature
        self.generator = torch.Generator().manual_seed(int(seed or 0))

    def temperature(self, scale: Scale) -> float:
        return 1.0 if self.temperatures is None else self.temperatures[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> CodebookChoice:
        progress = self.smoothing[scale.index]
        index = torch.zeros(logits.shape[:-1], dtype=torch.long)
        if progress is None or self.filters_mixed:
            logits = filter_logits(logits, *self.filters)
            index = self._draw(logits, f"s{scale.index:02}.tokens")
        if progress is None:
            return CodebookChoice(index, self.codebook[index])
        name = f"s{scale.index:02}.soft_weights"
        sharpened = logits * (1 + progress)
        self.comparison.check(f"s{scale.index:02}.logits_cfg_times_1_plus_ratio", sharpened)
        noise = torch.empty_like(logits).exponential_(generator=self.generator)
        weights = gumbel_softmax(sharpened, noise, smoothing_temperature(progress))
        self.comparison.check(name, weights)
        return CodebookChoice(index, self.comparison.case.tensors.get(name, weights) @ self.codebook)

    def _draw(self, logits: Tensor, name: str) -> Tensor:
        """One multinomial call over all tokens, as the official sampler makes it."""
        shares = logits.softmax(-1).flatten(0, 1)
        drawn = torch.multinomial(shares, 1, replacement=True, generator=self.generator)
        drawn = drawn.view(logits.shape[:-1])
        self.comparison.check(name, drawn)
        return self.comparison.case.tensors.get(name, drawn)


def check_landmark(comparison: Comparison, session: Any, name: str, scale: Scale, value: Any) -> None:
    """Compares what the loop shows to a probe with what is stored."""
    prefix = f"s{scale.index:02}"
    if name == "input":
        comparison.check(f"{prefix}.x_in", value)
    elif name.startswith("layer"):
        layer = int(name.split()[1])
        comparison.check(f"{prefix}.block{layer}_out", value)
        if layer == session.depth - 1:
            comparison.check(f"{prefix}.blocklast_out", value)
            comparison.check(f"{prefix}.logits", session.logits(value))
    elif name == "logits":
        comparison.check(f"{prefix}.logits_cfg", value)
    elif name == "choice":
        planes = value.codes.transpose(1, 2).unflatten(2, (scale.height, scale.width))
        comparison.check(f"{prefix}.code", planes)
    elif name == "latent":
        comparison.check(f"{prefix}.f_hat", value)
