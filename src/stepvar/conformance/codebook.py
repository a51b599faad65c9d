"""Parts of golden cases of models with a codebook: replayed draws, and the landmarks of the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from stepvar.conformance.case import Case, Comparison, DrawingSampler
from stepvar.generation.sampling import (
    CodebookChoice,
    filter_logits,
    gumbel_softmax,
    smoothing_temperature,
)
from stepvar.generation.schedule import Scale
from stepvar.models.common.square_schedules import LEVELS, levels_of
from stepvar.models.common.vq_vae import VectorQuantizedVAE
from stepvar.models.common.vq_vae_checkpoints import vae_from_state

Tokenizer = TypeVar("Tokenizer", bound=VectorQuantizedVAE)

RELATIVE = 1e-4
"""Largest error in units of a tensor's largest value. Another order of sums gives a few 1e-6; mixtures at a
low temperature enlarge it tenfold."""


def read_tokenizer(case: Case, kind: type[Tokenizer]) -> Tokenizer:
    """The tokenizer that the constructor of a case's VQVAE describes, with the case's weights."""
    share = abs(case.info["constructor"]["VQVAE"].get("quant_resi", 0.5))
    state = case.state("vqvae", "weights.safetensors")
    return vae_from_state(kind, state, refinement_share=share).requires_grad_(False)


def compares_directions(case: Case) -> bool:
    """Whether the tokenizer takes the code of the nearest direction, not the nearest one."""
    return bool(case.info["constructor"]["VQVAE"].get("using_znorm", False))


def with_levels(state: Mapping[str, Tensor], sides: Sequence[int]) -> dict[str, Tensor]:
    """An official state dict with the buffer that tells its schedule, also where it was left out."""
    return {LEVELS: levels_of(sides), **state}


class ReplaySampler(DrawingSampler):
    """Draws as the official sampler does, then goes on with what is stored.

    So a flipped code shows at its own scale and does not blur the comparison of later ones.

    Args:
        comparison: Of the case.
        codebook: [V, D].
        seed: Of the official generator; without one, what was drawn at random is an input.
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
        self.is_random = top_k != 1
        self.generator: torch.Generator | None = torch.Generator().manual_seed(int(seed or 0))
        if seed is None and (self.is_random or any(entry is not None for entry in smoothing)):
            self.generator = None

    def temperature(self, scale: Scale) -> float:
        return 1.0 if self.temperatures is None else self.temperatures[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> CodebookChoice:
        progress, prefix = self.smoothing[scale.index], f"s{scale.index:02}"
        if self.is_random or progress is not None:
            logits = self.comparison.replayed(f"{prefix}.logits_cfg", logits)
        index = torch.zeros(logits.shape[:-1], dtype=torch.long)
        if progress is None or self.filters_mixed:
            logits = filter_logits(logits, *self.filters)
            index = self._draw(logits, f"{prefix}.tokens")
        if progress is None:
            return CodebookChoice(index, self.codebook[index])
        name, sharpened = f"{prefix}.logits_cfg_times_1_plus_ratio", logits * (1 + progress)
        self.comparison.check(name, sharpened)
        return CodebookChoice(index, self._mix(self.comparison.replayed(name, sharpened), progress, prefix))

    def _draw(self, logits: Tensor, name: str) -> Tensor:
        """One multinomial call over all tokens, as the official sampler makes it."""
        if self.generator is None and self.is_random and name in self.comparison.case.tensors:
            return self.comparison.take(name).long()
        shares = logits.softmax(-1).flatten(0, 1)
        drawn = torch.multinomial(shares, 1, replacement=True, generator=self.generator)
        drawn = drawn.view(logits.shape[:-1])
        self.comparison.check(name, drawn)
        return self.comparison.case.tensors.get(name, drawn).long()

    def _mix(self, sharpened: Tensor, progress: float, prefix: str) -> Tensor:
        """Mixtures of codes [B, N, D] from logits that are filtered and sharpened."""
        name = f"{prefix}.soft_weights"
        if self.generator is None:
            return self.comparison.take(name) @ self.codebook
        noise = torch.empty_like(sharpened).exponential_(generator=self.generator)
        weights = gumbel_softmax(sharpened, noise, smoothing_temperature(progress))
        self.comparison.check(name, weights)
        return self.comparison.case.tensors.get(name, weights) @ self.codebook


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
