"""Sampling of bits: one independent two-way choice per bit.

The random numbers of an image are drawn before the loop from that image's own generator, for
every position of the whole schedule. So a batch equals single runs, no random call waits inside
a scale, and a dense and a pruned run of one seed share their noise position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.schedule import Scale, ScaleSchedule


def bit_probabilities(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Probability of bit 1 after top-k and top-p filtering.

    Args:
        logits: [..., 2], index 0 for bit 0 and index 1 for bit 1.
        top_k: 1 keeps the likelier value (both in a tie); 0 and 2 or more keep both.
        top_p: With 0 < top_p < 1 the rarer value goes when its probability is <= 1 - top_p.

    Returns:
        [...] in float32.

    Source: `sample_with_top_k_top_p_also_inplace_modifying_logits_`, FoundationVision/Infinity.
    """
    difference = logits[..., 1].float() - logits[..., 0].float()
    if top_k == 1:
        return torch.heaviside(difference, difference.new_tensor(0.5))
    probability = torch.sigmoid(difference)
    if 0.0 < top_p < 1.0:
        rarer = torch.minimum(probability, 1.0 - probability)
        certain = (difference >= 0).to(probability.dtype)
        probability = torch.where(rarer <= 1.0 - top_p, certain, probability)
    return probability


@dataclass(frozen=True)
class SamplingSettings:
    """How values are drawn from logits.

    Attributes:
        temperature: One a scale; the logits are divided by it before guidance.
        top_k: See `bit_probabilities`; 1 is argmax, 0 is off.
        top_p: See `bit_probabilities`; 0 is off.
    """

    temperature: tuple[float, ...]
    top_k: int = 0
    top_p: float = 0.0


class BitSampler:
    """Draws the bits of a batch of images, one generator an image.

    Args:
        settings: Temperature and filters.
        schedule: The whole schedule, skipped scales included.
        bits: Bits per token, one number or one a scale.
        generators: One generator an image, on any device.
        device: Where the loop runs.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        schedule: ScaleSchedule,
        bits: int | Sequence[int],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.settings = settings
        counts = [bits] * len(schedule) if isinstance(bits, int) else bits
        sizes = [scale.tokens * count for scale, count in zip(schedule, counts, strict=True)]
        noise = torch.stack(
            [
                torch.rand(sum(sizes), generator=generator, device=generator.device).to(device)
                for generator in generators
            ]
        )
        parts = zip(noise.split(sizes, dim=1), counts, strict=True)
        self.noise = [part.unflatten(1, (-1, count)) for part, count in parts]

    def temperature(self, scale: Scale) -> float:
        return self.settings.temperature[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> Tensor:
        """Draws bits [B, N, D] (bool) from logits [B, N, D, 2]."""
        probability = bit_probabilities(logits, self.settings.top_k, self.settings.top_p)
        return self.noise[scale.index] < probability
