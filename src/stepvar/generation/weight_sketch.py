"""Sketch of weights: a few of their numbers, by which they are known again in any number format."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ENTRIES = 16
"""Numbers taken of each matrix."""

TOLERANCE = 2**-8
"""Root of the mean squared difference of a matrix's numbers, relative to theirs, up to which they count as
equal: twice what rounding to bfloat16 can change."""

_TINY = 1e-7
"""Differences below it are those of numbers too small for float16."""


@dataclass(frozen=True)
class WeightSketch:
    """What is known of the weights that something was fitted to.

    Attributes:
        layout: Hash of the parameters' names and shapes.
        samples: [M, ENTRIES] numbers of every parameter of two or more dimensions, in the order of their
            names, float32 on the CPU; None where they are not in memory.
        digest: A short name of both.
    """

    layout: str
    samples: Tensor | None = field(compare=False, repr=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        numbers = b"" if self.samples is None else self.samples.numpy().tobytes()
        object.__setattr__(self, "digest", hashlib.sha256(self.layout.encode() + numbers).hexdigest()[:16])

    @classmethod
    def of(cls, network: nn.Module) -> WeightSketch:
        """Takes the sketch; waits for the network's device once."""
        matrices = [(name, part) for name, part in sorted(network.named_parameters()) if part.dim() >= 2]
        names = ";".join(f"{name}{tuple(part.shape)}" for name, part in matrices)
        layout = hashlib.sha256(names.encode()).hexdigest()[:16]
        if not matrices or any(part.is_meta for _, part in matrices):
            return cls(layout, None)
        with torch.no_grad():
            samples = torch.stack([_spread(part).float() for _, part in matrices]).cpu()
        return cls(layout, samples)

    def describes(self, network: nn.Module) -> bool:
        """Whether a network has these weights, in whatever number format; True where that is unknown.

        Changes below `TOLERANCE` are not seen: they are no larger than those of a number format.
        """
        other = WeightSketch.of(network)
        if other.layout != self.layout:
            return False
        if self.samples is None or other.samples is None:
            return True
        if self.samples.shape != other.samples.shape:
            return False
        difference, size = _size(self.samples - other.samples), _size(self.samples)
        return bool((difference <= TOLERANCE * size + _TINY).all())


def _spread(values: Tensor) -> Tensor:
    """[ENTRIES] numbers, evenly spread; an odd step, so that they lie in different columns."""
    flat = values.detach().reshape(-1)
    if len(flat) < ENTRIES:
        return flat.repeat(ENTRIES)[:ENTRIES]
    step = (len(flat) - 1) // (ENTRIES - 1)
    step -= int(step > 1 and step % 2 == 0)
    return flat[::step][:ENTRIES]


def _size(samples: Tensor) -> Tensor:
    return samples.square().mean(dim=1).sqrt()
