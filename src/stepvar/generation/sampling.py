"""Sampling: of bits, one independent two-way choice each, and of codes, one choice of a codebook a token.

The random numbers of an image are drawn before the loop from that image's own generator, for every position
of the whole schedule. So a batch has the noise of single runs, no random call waits inside a scale, and a
dense and a pruned run of one seed share their noise position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.randomness import seeded_generator
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
                torch.rand(sum(sizes), generator=generator, dtype=torch.float32, device=generator.device).to(
                    device
                )
                for generator in generators
            ]
        )
        parts = zip(noise.split(sizes, dim=1), counts, strict=True)
        self.noise = [part.unflatten(1, (-1, count)) for part, count in parts]

    def temperature(self, scale: Scale) -> float:
        return self.settings.temperature[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> Tensor:
        """Draws bits [B, N, D] (bool) from logits [B, N, D, 2]."""
        return self.noise[scale.index] < self.expect(logits, scale)

    def expect(self, logits: Tensor, scale: Scale) -> Tensor:
        """What `sample` draws on average: probabilities [B, N, D] of a 1."""
        return bit_probabilities(logits, self.settings.top_k, self.settings.top_p)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Sets unlikely entries of [..., V] to -inf; returns float32.

    Args:
        top_k: Entries below the k-th largest go (ties with it stay); 0, and V or more, keep all.
        top_p: Then the rarest go, as long as they have a share of 1 - top_p or less together; the likeliest
            always stays; 0 keeps all.

    Source: `sample_with_top_k_top_p_`, FoundationVision/VAR, models/helpers.py.
    """
    logits = logits.float()
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p > 0.0:
        ascending, places = logits.sort(dim=-1)
        gone = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
        gone[..., -1] = False
        logits = logits.masked_fill(gone.scatter(-1, places, gone), -torch.inf)
    return logits


def draw_index(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws one entry of each distribution by inverting its cumulated probabilities.

    Args:
        logits: [..., V]; -inf is never drawn.
        uniform: [...] in [0, 1).

    Returns:
        [...] int64.
    """
    cumulated = logits.softmax(dim=-1).cumsum(dim=-1)
    threshold = uniform[..., None] * cumulated[..., -1:]
    # Logits that are no numbers lead beyond the end; they are reported once the run is over.
    return torch.searchsorted(cumulated, threshold, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def gumbel_softmax(logits: Tensor, exponential: Tensor, temperature: float) -> Tensor:
    """Weights of a softened choice, [..., V]: a one-hot draw as the temperature falls to 0.

    Args:
        logits: [..., V]; -inf gets no weight.
        exponential: [..., V] of the law Exp(1).
    """
    return ((logits - exponential.log()) / temperature).softmax(dim=-1)


def smoothing_temperature(progress: float) -> float:
    """Temperature of `gumbel_softmax` at a scale, 0 at the first and 1 at the last scale.

    Source: `more_smooth` of FoundationVision/VAR, models/var.py.
    """
    return max(0.27 * (1.0 - 0.95 * progress), 0.005)


@dataclass(frozen=True)
class CodebookSettings:
    """How codes are drawn from logits.

    Attributes:
        temperature: One a scale; the logits are divided by it before guidance.
        top_k: One a scale, see `filter_logits`; 1 takes the likeliest code.
        top_p: See `filter_logits`.
        smoothing: One a scale: the progress, 0..1, of a scale whose codes are mixed by `gumbel_softmax`
            instead of picked; None picks.
        filter_smoothed: Whether the mixed codes are filtered too.
    """

    temperature: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: float
    smoothing: tuple[float | None, ...]
    filter_smoothed: bool = True


@dataclass(frozen=True)
class CodebookChoice:
    """What was drawn at a scale.

    Attributes:
        index: [B, N] int64, the code of every token.
        codes: [B, N, D], what enters the latent: those codes, or mixtures where the scale is smoothed.
    """

    index: Tensor
    codes: Tensor


class CodebookSampler:
    """Draws the codes of a batch of images, one generator an image.

    The noise that mixes codes has an entry for every code of every token. Only its seeds are drawn
    before the loop; it is made where the loop runs, when its scale comes, and kept no longer.

    Args:
        settings: Temperature, filters and smoothing.
        schedule: The whole schedule, skipped scales included.
        codebook: [V, D].
        generators: One generator an image, on any device.
        device: Where the loop runs.
    """

    def __init__(
        self,
        settings: CodebookSettings,
        schedule: ScaleSchedule,
        codebook: Tensor,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.codebook = codebook.to(device).float()
        uniform = [
            torch.rand(schedule.tokens, generator=generator, dtype=torch.float32, device=generator.device).to(
                device
            )
            for generator in generators
        ]
        self.uniform = torch.stack(uniform).split([scale.tokens for scale in schedule], dim=1)
        self.seeds = [
            torch.randint(2**62, (len(schedule),), generator=generator, device=generator.device).tolist()
            for generator in generators
        ]

    def temperature(self, scale: Scale) -> float:
        return self.settings.temperature[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> CodebookChoice:
        """Draws from logits [B, N, V]."""
        filtered = self.filter(logits, scale)
        if self.settings.top_k[scale.index] == 1:
            index = filtered.argmax(dim=-1)
        else:
            index = draw_index(filtered, self.uniform[scale.index])
        return CodebookChoice(index, self.codes(logits, filtered, index, scale))

    def expect(self, logits: Tensor, scale: Scale) -> CodebookChoice:
        """The likeliest codes, and the mean of all codes as what enters the latent."""
        filtered = self.filter(logits, scale)
        return CodebookChoice(filtered.argmax(dim=-1), filtered.softmax(dim=-1) @ self.codebook)

    def filter(self, logits: Tensor, scale: Scale) -> Tensor:
        """Filters logits [B, N, V] as the scale's settings say."""
        return filter_logits(logits, self.settings.top_k[scale.index], self.settings.top_p)

    def codes(self, logits: Tensor, filtered: Tensor, index: Tensor, scale: Scale) -> Tensor:
        """What enters the latent, [B, N, D]: the codes of `index`, or mixtures if the scale is smoothed."""
        progress = self.settings.smoothing[scale.index]
        if progress is None:
            return functional.embedding(index, self.codebook)
        mixed = filtered if self.settings.filter_smoothed else logits.float()
        weights = gumbel_softmax(
            mixed * (1.0 + progress), self.mixing_noise(scale), smoothing_temperature(progress)
        )
        return weights @ self.codebook

    def mixing_noise(self, scale: Scale) -> Tensor:
        """[B, N, V] of the law Exp(1), the same whenever it is asked for."""
        device, noise = self.codebook.device, []
        for seeds in self.seeds:
            generator = seeded_generator(seeds[scale.index], device)
            empty = torch.empty(
                scale.tokens, len(self.codebook), dtype=torch.float32, device=generator.device
            )
            noise.append(empty.exponential_(generator=generator).to(device))
        return torch.stack(noise)
