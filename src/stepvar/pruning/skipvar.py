"""SkipVAR: per picture, leaves out last scales, or their guidance, that will hardly change it.

Source: "SkipVAR: Accelerating Visual Autoregressive Modeling via Adaptive Frequency-Aware Skipping",
arXiv 2506.08908, as its authors' code decides (fakerone-li/SkipVAR, logistic regressions on two numbers).
The coefficients were fitted to Infinity-2B's pictures of one megapixel; the rule runs on any model whose
pipeline can draw a preview, but how well it does there has not been measured.

The static policies need no rule: `skip` and `unguided` of any method that prunes tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.fields import require_fields
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import (
    Limits,
    NestedPruner,
    Preview,
    Pruner,
    PruningMethod,
    plan_generation,
    start_pruner,
)
from stepvar.generation.schedule import Scale, ScaleSchedule

LATE_SCALES = 3
"""Scales that may be left out."""

PREVIEW_SHARE, SMALLEST_PREVIEW = 8, 2
"""The preview has 1 / 8 of the final grid's sides: 8 x 8 latent positions for 64 x 64; and at least two."""


@dataclass(frozen=True)
class Regression:
    """Multinomial logistic regression on two standardised numbers.

    Attributes:
        mean, deviation: Of the two numbers where it was fitted.
        classes: What each row stands for: how many of the last scales are left out.
        coefficients: One pair a class.
        intercepts: One a class.
    """

    mean: tuple[float, float]
    deviation: tuple[float, float]
    classes: tuple[int, ...]
    coefficients: tuple[tuple[float, float], ...]
    intercepts: tuple[float, ...]

    def decide(self, numbers: Sequence[float]) -> int:
        """The likeliest class."""
        first, second = (
            (value - mean) / deviation
            for value, mean, deviation in zip(numbers, self.mean, self.deviation, strict=True)
        )
        scores = [
            pair[0] * first + pair[1] * second + intercept
            for pair, intercept in zip(self.coefficients, self.intercepts, strict=True)
        ]
        return self.classes[scores.index(max(scores))]


def _skips(coefficients: tuple[tuple[float, float], ...], intercepts: tuple[float, ...]) -> Regression:
    return Regression((0.115321, 0.489232), (0.057648, 0.075618), (0, 1, 2, 3), coefficients, intercepts)


RULES: dict[float, tuple[Regression, Regression]] = {
    0.84: (
        _skips(
            ((1.9243, 1.7238), (0.9601, 0.2971), (-0.0594, -0.5505), (-2.8249, -1.4705)),
            (-0.8910, 0.7389, 0.8068, -0.6548),
        ),
        Regression(
            (0.179379, 0.573613),
            (0.062733, 0.053962),
            (1, 2, 3),
            ((1.0163, 0.9910), (0.3173, -0.0029), (-1.3336, -0.9881)),
            (-2.8480, 0.4558, 2.3923),
        ),
    ),
    0.86: (
        _skips(
            ((2.1642, 1.6661), (1.1669, 0.3448), (-0.1744, -0.6682), (-3.1567, -1.3427)),
            (0.3190, 1.1027, 0.5254, -1.9471),
        ),
        Regression(
            (0.166577, 0.556751),
            (0.060683, 0.054325),
            (0, 1, 2, 3),
            ((1.3238, 0.5604), (0.8289, 1.0618), (-0.0923, -0.2860), (-2.0604, -1.3362)),
            (-5.3601, -1.3570, 2.7284, 3.9886),
        ),
    ),
    0.88: (
        _skips(
            ((2.2967, 1.6788), (1.3476, 0.1892), (-0.3403, -0.5623), (-3.3040, -1.3057)),
            (1.6122, 1.5433, 0.1863, -3.3418),
        ),
        Regression(
            (0.151241, 0.542384),
            (0.057950, 0.057830),
            (0, 1, 2, 3),
            ((1.3747, 0.8569), (0.8234, 1.0200), (-0.1219, -0.5026), (-2.0763, -1.3743)),
            (-6.0275, -0.7597, 3.0355, 3.7517),
        ),
    ),
}
"""By target (structural similarity to the full run): the rule for scales, then the one for guidance."""


@dataclass(frozen=True)
class SkipVAR:
    """Decides per picture: leave out the last one to three scales, or only guidance there, or nothing.

    It decides once, before the third last scale, and there the host waits for the device. The pictures of a
    batch are judged apart, as if each were alone; a scale that some of them still need is computed for the
    whole batch.

    Attributes:
        target: Similarity that the rule was fitted for: 0.84 (the authors' default), 0.86 or 0.88.
        pruning: A method to prune tokens with besides; None for none.

    Raises:
        ValueError: When there is no rule for the target.
    """

    target: float = 0.84
    pruning: PruningMethod | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        if self.target not in RULES:
            known = ", ".join(f"{target:g}" for target in RULES)
            raise ValueError(f"SkipVAR has no rule for a target of {self.target:g}; known are {known}.")

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """The plan of `pruning`, as the most that will run."""
        if len(schedule) <= LATE_SCALES + 1:
            raise ValueError(
                f"SkipVAR compares two scales before the last {LATE_SCALES}; this schedule has only "
                f"{len(schedule)} scales."
            )
        if schedule.final.frames > 1:
            raise ValueError("SkipVAR judges pictures; a clip has several.")
        if schedule.final.part is not None:
            raise ValueError(
                "SkipVAR may leave out the last map, which is drawn in parts here: draw it at once."
            )
        return replace(plan_generation(self.pruning, schedule, depth), decides=True)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return SkipVARPruner(self, plan, start_pruner(self.pruning, plan, device))


class SkipVARPruner(NestedPruner):
    """Ends pictures early after looking at them once; everything else is the inner method's."""

    def __init__(self, config: SkipVAR, plan: GenerationPlan, inner: Pruner) -> None:
        super().__init__(plan, inner)
        self.skipping, self.unguiding = RULES[config.target]
        self.before: Tensor | None = None

    def decide(self, scale: Scale, latent: Tensor, preview: Preview | None) -> Limits | None:
        judged = len(self.plan.scales) - LATE_SCALES
        if scale.index == judged - 1:
            self.before = latent
        if scale.index != judged:
            return super().decide(scale, latent, preview)
        if preview is None:
            raise ValueError("SkipVAR looks at the picture so far, and here nothing draws it.")
        assert self.before is not None, "the scale before is never the first one"
        pictures = [preview(_small(codes)) for codes in (self.before, latent)]
        return self.limits(edge_change(*pictures).tolist(), fine_share(pictures[1]).tolist())

    def limits(self, changes: Sequence[float], shares: Sequence[float]) -> Limits:
        """Where each picture ends, from the change of its edges and its share of high frequencies."""
        end, planned = len(self.plan.scales), Limits.planned(self.plan, len(changes))
        stop, unguided = list(planned.stop), list(planned.unguided)
        for image, numbers in enumerate(zip(changes, shares, strict=True)):
            left_out = self.skipping.decide(numbers)
            stop[image] -= left_out
            if not left_out:
                unguided[image] = min(unguided[image], end - self.unguiding.decide(numbers))
        return Limits(tuple(stop), tuple(unguided))


def _small(latent: Tensor) -> Tensor:
    """Codes [B, d, H, W] at the size of a preview."""
    size = [max(side // PREVIEW_SHARE, SMALLEST_PREVIEW) for side in latent.shape[-2:]]
    return functional.interpolate(latent, size=size, mode="bilinear", align_corners=False)


def edge_change(before: Tensor, after: Tensor) -> Tensor:
    """Mean difference [B] of the Sobel magnitudes of two pictures [B, 3, H, W], channels averaged."""
    first, second = (_edges(picture.float().mean(dim=1, keepdim=True)) for picture in (before, after))
    return (second - first).abs().mean(dim=(1, 2, 3))


def _edges(grey: Tensor) -> Tensor:
    kernel = grey.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    gradients = functional.conv2d(grey, torch.stack([kernel, kernel.T])[:, None], padding=1)
    return gradients.square().sum(dim=1, keepdim=True).sqrt()


def fine_share(picture: Tensor) -> Tensor:
    """Share [B] of the Fourier amplitude of pictures [B, 3, H, W] outside 0.4 of the Nyquist frequency."""
    grey = picture.float().mean(dim=1)
    height, width = grey.shape[-2:]
    amplitude = torch.fft.fftshift(torch.fft.fft2(grey), dim=(-2, -1)).abs()
    rows = torch.arange(height, dtype=torch.int64, device=grey.device) - height // 2
    columns = torch.arange(width, dtype=torch.int64, device=grey.device) - width // 2
    radius = int(0.4 * min(height, width) / 2)
    fine = rows[:, None].square() + columns.square() > radius**2
    return (amplitude * fine).sum(dim=(1, 2)) / (amplitude.sum(dim=(1, 2)) + 1e-6)
