"""Classifier-free guidance: at the logits, or inside the transformer after named layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


def per_scale(value: float | Sequence[float], scales: int, name: str) -> tuple[float, ...]:
    """Spreads a number, or a list with at least one entry a scale, over the scales.

    Raises:
        ValueError: When a list is shorter than the schedule.
    """
    if isinstance(value, (int, float)):
        return (float(value),) * scales
    values = tuple(float(entry) for entry in value)
    if len(values) < scales:
        raise ValueError(
            f"{name} has {len(values)} entries, but the schedule has {scales} scales: "
            "give one number, or one entry a scale."
        )
    return values[:scales]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of one generation.

    Rows of a guided batch are the B conditional copies, then the B unconditional ones; guidance
    replaces a pair by `weight * conditional + (1 - weight) * unconditional`.

    Attributes:
        weights: One weight a scale; 1 leaves the conditional copy as it is.
        layers: Layers after which both copies are replaced by their mixture.
        at_logits: Whether the logits are mixed.
        release: Stop computing the unconditional copies after the last scale that mixes them.
        until: First scale that is no longer guided, one an image; empty where all scales are.

    Source: `cfg_list` and `cfg_insertion_layer` of FoundationVision/Infinity, models/infinity.py.
    """

    weights: tuple[float, ...]
    layers: frozenset[int] = frozenset()
    at_logits: bool = True
    release: bool = True
    until: tuple[int, ...] = ()

    @property
    def active(self) -> bool:
        """Whether any scale mixes anything, and so needs an unconditional copy."""
        return (self.at_logits or bool(self.layers)) and any(weight != 1.0 for weight in self.weights)

    def rows(self, scale: int, images: int, copies: int) -> int:
        """Rows to compute at a scale, of a batch of `images` in `copies` (1 or 2) copies."""
        if self.release and not any(self.guides(later) for later in range(scale, len(self.weights))):
            return images
        return images * copies

    def guides(self, scale: int) -> bool:
        """Whether any image is guided at a scale."""
        return self.weights[scale] != 1.0 and (not self.until or scale < max(self.until))

    def mixes_logits(self, scale: int) -> bool:
        return self.at_logits and self.guides(scale)

    def after_layer(self, scale: int, layer: int, hidden: Tensor) -> Tensor:
        """Mixes hidden [R, N, C] after a named layer; the identity after any other."""
        if layer not in self.layers or not self.guides(scale):
            return hidden
        mixed = self.mix_images(scale, hidden)
        return mixed.repeat(2, *(1,) * (hidden.dim() - 1))

    def mix_images(self, scale: int, paired: Tensor) -> Tensor:
        """Mixes [2B, ...] into [B, ...]; images no longer guided keep their conditional copy."""
        mixed = self.mix(scale, paired)
        released = [image for image, last in enumerate(self.until) if last <= scale]
        if released:
            mixed[released] = paired[released]
        return mixed

    def mix(self, scale: int, paired: Tensor) -> Tensor:
        """Mixes [2B, ...] into [B, ...]."""
        conditional, unconditional = paired.chunk(2)
        weight = self.weights[scale]
        return weight * conditional + (1.0 - weight) * unconditional
