"""Diffusion head of HART: draws what the last scale's codes leave over, token by token.

A small network removes noise from D numbers in a handful of steps, given the transformer's hidden state.

Source: mit-han-lab/hart, hart/modules/diffusion (after "Autoregressive Image Generation without Vector
Quantization", arXiv 2406.11838, and "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672).
Shapes: M tokens of all images, D channels of a code, C width of the transformer, w width of the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from stepvar.models.common.base import BlockList
from stepvar.models.common.layers import LayerNorm, Linear, sinusoid

TRAINED_STEPS = 1000
"""Steps of the process that the network was trained on; a few of them are taken."""

OUTPUT_SCALE = 0.6
"""The network was trained on residuals divided by this."""

SINUSOID_CHANNELS = 256
"""Channels of the wave that a number becomes: of a step here, of a scale in the transformer."""

MAXIMUM_BETA = 0.999

EQUAL_ROWS = 16
"""Rows that a step's number is embedded in. A single one would take another kernel on the CPU, and the first
step multiplies what its rounding changes by twenty thousand; so many agree with the official code to the bit,
which has a row a token. For the same reason sums are not fused here."""


def kept_steps(sections: str, total: int = TRAINED_STEPS) -> list[int]:
    """Which of the trained steps are taken, ascending.

    Args:
        sections: How many steps to take of each of equal sections, say "8" or "10,5,5".
        total: Trained steps; what does not divide goes to the first sections.

    Raises:
        ValueError: When the sections cannot be read, or ask for more steps than there are.
    """
    try:
        counts = [int(count) for count in sections.split(",")]
    except ValueError as error:
        raise ValueError(f"The diffusion steps {sections!r} are no number or list of numbers.") from error
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = total // len(counts) + (index < total % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"The diffusion steps {sections!r} ask for {count} of {size} steps.")
        stride = 1.0 if count == 1 else (size - 1) / (count - 1)
        place = 0.0
        for _ in range(count):
            # Added up as the source does: a product rounds differently.
            kept.append(start + round(place))
            place += stride
        start += size
    return kept


def _alpha_bar(share: float) -> float:
    """Share of the signal that is left after a share of the process (cosine schedule)."""
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2


@dataclass(frozen=True)
class DiffusionSchedule:
    """The steps that are taken, ascending, with everything that depends on the step alone.

    All arrays are float64, one entry a step.

    Attributes:
        timesteps: Numbers of the steps in the trained process.
        betas: Noise that a step adds.
        alphas_cumprod: Share of the signal left after it.
        sqrt_recip_alphas_cumprod, sqrt_recipm1_alphas_cumprod: Weights of state and noise in the estimate of
            the result.
        posterior_variance, posterior_log_variance_clipped: Of the state one step earlier.
        posterior_mean_coef1, posterior_mean_coef2: Weights of result and state in its mean.
    """

    timesteps: tuple[int, ...]
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray

    @classmethod
    def respaced(cls, sections: str) -> DiffusionSchedule:
        """The schedule that takes some of the trained steps; see `kept_steps`."""
        shares = [index / TRAINED_STEPS for index in range(TRAINED_STEPS + 1)]
        trained = np.array(
            [
                min(1 - _alpha_bar(after) / _alpha_bar(before), MAXIMUM_BETA)
                for before, after in pairwise(shares)
            ]
        )
        timesteps = kept_steps(sections)
        left = np.cumprod(1.0 - trained)[timesteps]
        betas = 1.0 - left / np.append(1.0, left[:-1])
        left = np.cumprod(1.0 - betas)
        before = np.append(1.0, left[:-1])
        variance = betas * (1.0 - before) / (1.0 - left)
        # The first step's variance is zero; its logarithm borrows the next one's.
        clipped = np.append(variance[1], variance[1:]) if len(variance) > 1 else betas
        return cls(
            tuple(timesteps),
            betas,
            left,
            np.sqrt(1.0 / left),
            np.sqrt(1.0 / left - 1.0),
            variance,
            np.log(clipped),
            betas * np.sqrt(before) / (1.0 - left),
            (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - left),
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    def estimate(self, step: int, state: Tensor, output: Tensor) -> Tensor:
        """The result [M, D] that a network's output [M, 2 D] points at from a state [M, D]."""
        noise = output[:, : state.shape[1]]
        weights = self.sqrt_recip_alphas_cumprod[step], self.sqrt_recipm1_alphas_cumprod[step]
        return (float(weights[0]) * state - float(weights[1]) * noise).clamp(-1.0, 1.0)

    def previous(self, step: int, state: Tensor, output: Tensor, noise: Tensor) -> Tensor:
        """The state one step earlier.

        Args:
            step: Index into the steps taken; 0 is the last that runs, and adds no noise.
            state: [M, D].
            output: [M, 2 D] of the network: noise, and where the variance lies between its bounds.
            noise: [M, D] of the standard normal distribution.
        """
        weights = float(self.posterior_mean_coef1[step]), float(self.posterior_mean_coef2[step])
        mean = weights[0] * self.estimate(step, state, output) + weights[1] * state
        if step == 0:
            return mean
        share = (output[:, state.shape[1] :] + 1.0) / 2.0
        upper = math.log(self.betas[step])
        lower = float(self.posterior_log_variance_clipped[step])
        log_variance = share * upper + (1.0 - share) * lower
        return mean + (0.5 * log_variance).exp() * noise


@dataclass(frozen=True)
class DiffusionNoise:
    """Random numbers of one sampling.

    Attributes:
        initial: [M, D] the state that it starts from.
        steps: [S, M, D] one a step, in the order in which the steps run; the last one is not used.
    """

    initial: Tensor
    steps: Tensor


class DiffusionBlock(nn.Module):
    """A modulated feed-forward on a residual path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=1e-6)
        self.up = Linear(width, width)
        self.down = Linear(width, width)
        self.modulation = Linear(width, 3 * width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """hidden [M, w] float32, condition [M, w] after its SiLU -> [M, w]."""
        shift, scale, gate = self.modulation(condition).float().chunk(3, dim=-1)
        normed = self.norm(hidden) * (scale + 1.0) + shift
        inner = self.up(normed.to(condition.dtype))
        return hidden + gate * self.down(functional.silu(inner)).float()


class DiffusionHead(nn.Module):
    """The network and its sampling.

    Args:
        channels: D.
        condition_channels: C.
        width, depth: w, blocks.
        steps: See `kept_steps`.
    """

    def __init__(self, channels: int, condition_channels: int, width: int, depth: int, steps: str) -> None:
        super().__init__()
        self.schedule = DiffusionSchedule.respaced(steps)
        self.channels = channels
        self.time_embedding = nn.Sequential(Linear(SINUSOID_CHANNELS, width), nn.SiLU(), Linear(width, width))
        self.condition_embedding = Linear(condition_channels, width)
        self.input = Linear(channels, width)
        self.blocks: BlockList[DiffusionBlock] = BlockList(DiffusionBlock(width) for _ in range(depth))
        self.output_modulation = Linear(width, 2 * width)
        self.output = Linear(width, 2 * channels)

    def embed_time(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers of trained steps [...] -> [..., w], in a number format."""
        embedded: Tensor = self.time_embedding(sinusoid(timesteps.float(), SINUSOID_CHANNELS).to(dtype))
        return embedded

    def forward(self, state: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """One pass of the network.

        Args:
            state: [M, D].
            time: [M or 1, w] from `embed_time`.
            condition: [M, w] from `condition_embedding`.

        Returns:
            [M, 2 D] in float32: the noise in the state, and where its variance lies between its bounds.
        """
        activated = functional.silu(time + condition)
        hidden: Tensor = self.input(state.to(condition.dtype)).float()
        for block in self.blocks:
            hidden = block(hidden, activated)
        shift, scale = self.output_modulation(activated).float().chunk(2, dim=-1)
        normed = functional.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (scale + 1.0) + shift
        outputs: Tensor = self.output(normed.to(condition.dtype))
        return outputs.float()

    def predict(self, state: Tensor, step: int, condition: Tensor, guidance: float) -> Tensor:
        """Output of the network at a step, guided: [M, 2 D].

        Only the noise is guided. Both copies see the same state, so only the conditional state is kept.

        Args:
            state: [M, D].
            step: Index into the steps taken.
            condition: [M or 2 M, w] embedded; the conditional tokens, then the unconditional ones if any.
            guidance: g of (1 + g) x conditional - g x unconditional.
        """
        number = float(self.schedule.timesteps[step])
        steps = torch.full((EQUAL_ROWS,), number, device=state.device, dtype=torch.float32)
        time = self.embed_time(steps, condition.dtype)[:1]
        copies = len(condition) // len(state)
        output = self(state.repeat(copies, 1), time, condition)
        if copies == 1:
            return output
        conditional, unconditional = output.chunk(2)
        noise = (1.0 + guidance) * conditional[:, : self.channels]
        noise = noise - guidance * unconditional[:, : self.channels]
        return torch.cat([noise, conditional[:, self.channels :]], dim=1)

    def sample(
        self,
        condition: Tensor,
        noise: DiffusionNoise,
        guidance: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draws residuals.

        A guidance of exactly 1 is no guidance, as in the official code; nor is 0, where it would only cost.

        Args:
            condition: [M or 2 M, C], the conditional tokens, then the unconditional ones if any.
            noise: Random numbers of M tokens.
            guidance: See `predict`.
            dtype: Number format of the matrix products.

        Returns:
            [M, D] in float32, to be added to the codes.
        """
        state = noise.initial.float()
        if guidance in (0.0, 1.0):
            condition = condition[: len(state)]
        embedded = self.condition_embedding(condition.to(dtype))
        for order, step in enumerate(reversed(range(len(self.schedule)))):
            output = self.predict(state, step, embedded, guidance)
            state = self.schedule.previous(step, state, output, noise.steps[order].float())
        return state * OUTPUT_SCALE
