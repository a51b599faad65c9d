"""Curriculum from coarse to fine scales: phases of the time budget and the batches of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSpec:
    """Size of the batch of one step.

    Attributes:
        scales: How many are run, coarse ones first; None for all.
        examples: Pictures or videos, in every process.
        share: Of the tokens of a fine scale that are run.
        latent_frames: Of a video, the first ones; None for all.
        passes: Parts that the examples are run in, whose gradients are added up, to bound the memory.
    """

    scales: int | None
    examples: int
    share: float = 1.0
    latent_frames: int | None = None
    passes: int = 1


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
        share: Of the time budget.
        batches: Taken in turn, step by step.
    """

    share: float
    batches: tuple[BatchSpec, ...]


def batch_at(curriculum: Sequence[Phase], progress: float, step: int) -> BatchSpec:
    """The batch of a step.

    Args:
        curriculum: Phases in order.
        progress: Share of the budget that is spent, 0 to 1.
        step: Counts the updates.
    """
    ends = itertools.accumulate(phase.share for phase in curriculum[:-1])
    phase = curriculum[sum(progress >= end for end in ends)]
    return phase.batches[step % len(phase.batches)]
