"""FasterVAR on Infinity as its authors' code computes it, written out plainly: what ours is measured against.

The arithmetic of sen-mao/FasterVAR, folder Infinity, on the weights of an `InfinityTransformer`, one picture
at a time as there: the costs of `plain_infinity`, and

- where guidance is dropped, the unconditional half of everything is cut out, the cache included;
- every group of layers hands its output on to the next scale, whether that needs it or not;
- a projection draws all its random numbers at once and divides them before the product;
- a restoration resizes the base by area and overwrites the representatives.

Shapes as in `plain_infinity`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from plain_infinity import BlockCache, PlainInfinity, _rotation, _run_block
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import Sampler
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.common.resizing import resize_bilinear
from stepvar.models.infinity.quantizer import codes_from_bits
from stepvar.models.infinity.session import TextCondition


@dataclass(frozen=True)
class PlainSettings:
    """What the authors' code does to which scales.

    Attributes:
        shares: Of a low-rank scale's tokens, one a group of layers.
        low_rank: Index of the scale that is projected.
        unguided: First scale on the unconditional row alone.
        skipped: Scales that are not run.
        seed: Of the random numbers.
    """

    shares: Sequence[float]
    low_rank: int
    unguided: int
    skipped: Sequence[int] = ()
    seed: int = 0


class PlainFasterVAR(PlainInfinity):
    """Generates one picture with the weights of a transformer, as FasterVAR's authors do."""

    @torch.no_grad()
    def accelerated(
        self,
        condition: TextCondition,
        schedule: ScaleSchedule,
        guidance: Guidance,
        sampler: Sampler,
        settings: PlainSettings,
    ) -> Tensor:
        """Runs the scales that are not skipped; returns the accumulated codes [1, d, H, W]."""
        model = self.transformer
        numbers = torch.Generator(self.device).manual_seed(settings.seed)
        with self.autocast():
            text, mask = self._pad_text(condition)
            normed = model.text_norm(text)
            pooled = model.text_pool(normed, mask)
            projected = model.text_projection(normed.to(model.text_projection[0].weight.dtype))
            with torch.autocast(self.device.type, enabled=False):
                shared = model.shared_modulation(functional.silu(pooled.float())).view(len(text), 1, 6, -1)
            caches = [BlockCache() for _ in model.blocks]
            grid = (schedule.final.height, schedule.final.width)
            latent = torch.zeros(1, model.config.bits, *grid, device=self.device)
            hidden, bases, before = pooled[:, None] + model.start_embedding, [], schedule[0]
            for scale in schedule:
                if scale.index in settings.skipped:
                    continue
                if scale.index == settings.unguided:
                    projected, mask, pooled, shared = (part[1:] for part in (projected, mask, pooled, shared))
                    for cache in caches:
                        assert cache.key is not None and cache.value is not None
                        cache.key, cache.value = cache.key[1:], cache.value[1:]
                hidden = hidden[-len(pooled) :] + model.level_embedding.weight[scale.index]
                turn = _rotation(model, scale, schedule.position_grid)
                groups, outputs = len(settings.shares), []
                for group in range(groups):
                    chosen = None
                    if scale.index == settings.low_rank:
                        rank = math.floor(settings.shares[group] * scale.tokens) + 1
                        chosen, hidden = project(hidden, rank, numbers)
                    size = len(model.blocks) // groups
                    for layer in range(group * size, (group + 1) * size):
                        places = turn[..., : hidden.shape[1], :]
                        block, cache = model.blocks[layer], caches[layer]
                        hidden = _run_block(block, hidden, shared, projected, mask, places, cache)
                    if chosen is not None:
                        hidden = restore(hidden, chosen, bases[group], before, scale)
                    outputs.append(hidden)
                bases, before = outputs, scale
                if scale.index < settings.unguided:
                    logits = self._logits(hidden, pooled, scale, 1, guidance, sampler)
                else:
                    alone = Guidance((1.0,) * len(schedule))
                    logits = self._logits(hidden, pooled, scale, 1, alone, sampler)
                bits = sampler.sample(logits, scale).unflatten(1, (scale.height, scale.width))
                latent = latent + resize_bilinear(codes_from_bits(bits), grid)
                if scale.index + 1 < len(schedule):
                    hidden = self._next_input(latent, schedule[scale.index + 1], len(pooled))
        return latent


def project(hidden: Tensor, rank: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
    """Representatives [R, r], and mixtures [R, r, C] of tokens [R, N, C]."""
    hidden = hidden.float()
    energy = hidden.norm(dim=2).square()
    chosen = torch.multinomial(energy / energy.sum(dim=1, keepdim=True), rank, generator=numbers)
    weights = torch.randn(*hidden.shape[:2], rank, generator=numbers, device=hidden.device)
    return chosen, torch.bmm((weights / math.sqrt(rank)).transpose(1, 2), hidden)


def restore(output: Tensor, chosen: Tensor, base: Tensor, before: Scale, scale: Scale) -> Tensor:
    """Tokens [R, N, C] of a scale: outputs [R, r, C] at `chosen`, the base of the scale before elsewhere."""
    maps = base[-len(output) :].transpose(1, 2).unflatten(2, (before.height, before.width))
    dense = functional.interpolate(maps, size=(scale.height, scale.width), mode="area")
    dense = dense.flatten(2).transpose(1, 2).clone()
    return dense.scatter_(1, chosen[..., None].expand_as(output), output)
