"""Generations of pictures that were computed one after the other, as one generation of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from stepvar.generation.loop import Generation
from stepvar.generation.progress import ScaleReport
from stepvar.generation.tokens import join_choices


def join_generations(generations: Sequence[Generation]) -> Generation:
    """Generations of one schedule as one: pictures in order, times added up.

    A scale counts as skipped where no picture ran it. Choices are those of the scales that all pictures ran.
    """
    first, *others = generations
    if not others:
        return first
    shared = [index for index in first.choices if all(index in entry.choices for entry in others)]
    return Generation(
        torch.cat([entry.latent for entry in generations]),
        {index: join_choices([entry.choices[index] for entry in generations]) for index in shared},
        [_join_scales(entries) for entries in zip(*(entry.scales for entry in generations), strict=True)],
        max(entry.cache_bytes for entry in generations),
    )


def _join_scales(entries: Sequence[ScaleReport]) -> ScaleReport:
    ran = [entry for entry in entries if not entry.plan.skipped] or entries
    kept = [entry.kept_index for entry in entries if entry.kept_index is not None]
    return replace(
        ran[0],
        kept_index=torch.cat(kept) if len(kept) == len(entries) else None,
        seconds=sum(entry.seconds for entry in entries),
    )
