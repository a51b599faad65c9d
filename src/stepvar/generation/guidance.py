"""Classifier-free guidance: at the logits, or inside the transformer after named layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
COPIES = (CONDITIONAL, UNCONDITIONAL)
"""The copies of an image, in the order of their rows."""


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
        remembers: Whether scales read what unconditional copies left in a cache; if not, they are computed
            only at the scales that mix them.
        until: First scale that is no longer guided, one an image; empty where all scales are.
        remaining: Which copy of an image goes on alone from there, one of `COPIES`.

    Source: `cfg_list` and `cfg_insertion_layer` of FoundationVision/Infinity, models/infinity.py.
    """

    weights: tuple[float, ...]
    layers: frozenset[int] = frozenset()
    at_logits: bool = True
    release: bool = True
    remembers: bool = True
    until: tuple[int, ...] = ()
    remaining: str = CONDITIONAL

    @property
    def active(self) -> bool:
        """Whether any scale mixes anything, and so needs an unconditional copy."""
        return (self.at_logits or bool(self.layers)) and any(weight != 1.0 for weight in self.weights)

    def rows(self, scale: int, images: int, copies: int) -> slice:
        """Rows to compute at a scale, of a batch of `images` in `copies` (1 or 2) copies."""
        later = range(scale, len(self.weights)) if self.remembers else (scale,)
        needed = {self.remaining if self._dropped(index) else CONDITIONAL for index in later}
        if any(self.guides(index) for index in later):
            needed = set(COPIES)
        if copies == 1 or not self.release or len(needed) > 1:
            return slice(0, images * copies)
        return self._copy(needed.pop(), images)

    def row_count(self, scale: int, images: int, copies: int) -> int:
        """How many rows are computed at a scale; see `rows`."""
        rows = self.rows(scale, images, copies)
        return int(rows.stop - rows.start)

    def unmixed_rows(self, scale: int, images: int, copies: int) -> slice:
        """Rows of the copies that are drawn from at a scale where nothing is mixed."""
        alone = self.remaining if self._dropped(scale) and copies > 1 else CONDITIONAL
        return self._copy(alone, images)

    @staticmethod
    def _copy(name: str, images: int) -> slice:
        """Rows of one of the `COPIES`."""
        start = COPIES.index(name) * images
        return slice(start, start + images)

    def _dropped(self, scale: int) -> bool:
        """Whether no image is guided any more."""
        return bool(self.until) and scale >= max(self.until)

    def guides(self, scale: int) -> bool:
        """Whether any image is guided at a scale."""
        return self.weights[scale] != 1.0 and not self._dropped(scale)

    def mixes_logits(self, scale: int) -> bool:
        return self.at_logits and self.guides(scale)

    def after_layer(self, scale: int, layer: int, hidden: Tensor) -> Tensor:
        """Mixes hidden [R, N, C] after a named layer; the identity after any other."""
        if layer not in self.layers or not self.guides(scale):
            return hidden
        mixed = self.mix_images(scale, hidden)
        return mixed.repeat(2, *(1,) * (hidden.dim() - 1))

    def mix_images(self, scale: int, paired: Tensor) -> Tensor:
        """Mixes [2B, ...] into [B, ...]; images no longer guided keep their remaining copy."""
        mixed = self.mix(scale, paired)
        released, alone = self._released(scale, len(mixed))
        if released:
            mixed[released] = paired[alone]
        return mixed

    def _released(self, scale: int, images: int) -> tuple[list[int], list[int]]:
        """Images no longer guided, and the rows of their remaining copies."""
        released = [image for image, last in enumerate(self.until) if last <= scale]
        return released, [COPIES.index(self.remaining) * images + image for image in released]

    def paired(self, scale: int, hidden: Tensor) -> Tensor:
        """Hidden states [B or 2B, ...] for a model that guides once more after the logits.

        Both copies of an image that is no longer guided are its remaining one, so that mixing them changes
        nothing.
        """
        images = len(self.until)
        released, alone = self._released(scale, images)
        if not released or len(hidden) == images:
            return hidden
        copies, kept = hidden.clone(), hidden[alone]
        copies[released] = kept
        copies[[images + image for image in released]] = kept
        return copies

    def mix(self, scale: int, paired: Tensor) -> Tensor:
        """Mixes [2B, ...] into [B, ...]."""
        conditional, unconditional = paired.chunk(2)
        weight = self.weights[scale]
        return weight * conditional + (1.0 - weight) * unconditional


@dataclass(frozen=True)
class ProjectedGuidance(Guidance):
    """Adaptive projected guidance (APG): bounded, and only across the direction of the prediction.

    The difference of both copies is first shortened to a root mean square of `threshold`; then only its
    part across the conditional logits counts, and `parallel` of the part along them. Both are statistics of
    an image's whole token map, so a token that is copied from a neighbour counts as often as it is copied.

    Attributes:
        threshold: Largest root mean square of the difference; 0 is off.
        parallel: Weight of the part along the conditional logits.

    Source: `apg` of FoundationVision/InfinityStar, infinity/models/apg.py; method of arXiv 2410.02416.
    """

    threshold: float = 0.0
    parallel: float = 0.0

    def mix(self, scale: int, paired: Tensor) -> Tensor:
        conditional, unconditional = paired.chunk(2)
        rows = conditional.flatten(1)
        difference = rows - unconditional.flatten(1)
        if self.threshold > 0:
            size = difference.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5
            difference = difference * (self.threshold / size.clamp_min(1e-12)).clamp_max(1.0)
        direction = torch.nn.functional.normalize(rows.double(), dim=1)
        along = (difference * direction).sum(dim=1, keepdim=True) * direction
        update = (difference - along).float() + self.parallel * along.float()
        return conditional + (self.weights[scale] - 1.0) * update.view_as(conditional)
