"""Token scores: functions from the features of a token map to one number a token.

A score is a function with a decorator; one of your own works in the same way from outside the package:

    @scorer("contrast")
    def contrast(tokens: ScoringInput, *, power: float = 1.0) -> Tensor:
        return tokens.features.float().std(dim=-1) ** power

Shapes: B images, N = t x h x w tokens in row-major order, C channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.schedule import Grid
from stepvar.pruning.rules import Registry


@dataclass(frozen=True)
class ScoringInput:
    """The tokens of a scale, and everything else that a score may depend on.

    Attributes:
        features: [B, N, C] hidden states at the entry of the first narrowed layer, of the conditional copies.
        grid: (t, h, w) with t x h x w = N.
        maps: Accumulated codes before the previous scale and before this one, each
            [B, d, h', w'] (or [B, d, t', h', w']); the former is None at the first scales.
        generator: The method's own random numbers, apart from those of sampling.
        unconditional: [B, N, C] hidden states of the copies that do not know the prompt; None at scales
            without classifier-free guidance.
    """

    features: Tensor
    grid: Grid
    maps: tuple[Tensor | None, Tensor]
    generator: torch.Generator
    unconditional: Tensor | None = None


Scorer = Callable[..., Tensor]
"""A score: (tokens: ScoringInput, **options) -> [B, N]; tokens with a larger score are kept first."""

BoundScorer = Callable[[ScoringInput], Tensor]
"""A score with its options."""


def _check_scorer(rule: Any) -> None:
    """Raises ValueError when an object is no score."""
    if not callable(rule) or isinstance(rule, type):
        kind = rule.__name__ if isinstance(rule, type) else type(rule).__name__
        raise ValueError(
            f"A score is a name or a function of ScoringInput that returns [B, N]; this is {kind!r}."
        )


SCORERS: Registry[Scorer] = Registry("score", "stepvar.scorers", _check_scorer)
"""The scores by name."""

scorer = SCORERS.register
"""Decorator that gives a score its name."""

NORMALISATIONS = ("minmax", "rank", "deviation")
"""How scores of different kinds are made comparable; see `normalise`."""

BLOCK = 8
"""Vectors that the power iteration works on at once."""


def principal_component(features: Tensor, iterations: int, generator: torch.Generator) -> Tensor:
    """First principal direction of each image's tokens, by block power iteration (StepVAR, eq. 2).

    A single vector needs dozens of iterations wherever the second component is nearly as strong as the
    first. A block of eight separates the two after a handful, for the same reads of the features.
    The centred features are never materialised: with the mean m, Xc v = X v - m.v and
    Xc^T u = X^T u - m sum(u).

    Args:
        features: [B, N, C], float32.
        iterations: Products with the covariance; each reads the features twice.
        generator: Draws the starting block.

    Returns:
        [B, C, 1] unit vectors (zero where all tokens are equal); the sign is arbitrary.
    """
    batch, _, channels = features.shape
    start = torch.randn(
        min(BLOCK, channels), channels, generator=generator, dtype=torch.float32, device=generator.device
    )
    block = start.to(features).expand(batch, -1, -1)
    mean = features.mean(dim=1, keepdim=True)

    def project(vectors: Tensor) -> Tensor:
        # Vectors as rows [B, q, C]: several times faster on a CPU than as columns.
        return vectors @ features.transpose(1, 2) - vectors @ mean.transpose(1, 2)

    for _ in range(iterations):
        projection = project(block)
        block = _unit_norm(projection @ features - projection.sum(dim=2, keepdim=True) * mean)
    basis = torch.linalg.qr(block.transpose(1, 2)).Q
    projection = project(basis.transpose(1, 2))
    return basis @ _leading_vector(projection @ projection.transpose(1, 2))


def _leading_vector(matrix: Tensor) -> Tensor:
    """First eigenvector [B, q, 1] of small positive semidefinite matrices [B, q, q].

    Squares them again and again: unlike torch's `eigh`, this never makes the host wait.
    """
    for _ in range(10):
        matrix = _unit_norm(matrix)
        matrix = matrix @ matrix
    largest = matrix.diagonal(dim1=1, dim2=2).argmax(dim=1)
    return _unit_norm(matrix.gather(2, largest.view(-1, 1, 1).expand(-1, matrix.shape[1], 1)))


def _unit_norm(matrix: Tensor) -> Tensor:
    """Matrices [B, m, n] of Frobenius norm one; zero stays zero."""
    return matrix / matrix.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)


def structure_scores(features: Tensor, iterations: int, generator: torch.Generator) -> Tensor:
    """|projection of the centred features on their first principal component| (StepVAR, eq. 3).

    Args:
        features: [B, N, C].
        iterations: See `principal_component`.

    Returns:
        [B, N] in float32.
    """
    features = features.float()
    direction = principal_component(features, iterations, generator)
    mean = features.mean(dim=1, keepdim=True)
    return (features @ direction - mean @ direction).squeeze(-1).abs()


def texture_scores(features: Tensor, grid: Grid, kernel: int = 3) -> Tensor:
    """L2 norm over channels of features minus their local average (StepVAR, eq. 4 to 6).

    The average is taken within a frame and leaves out the padding, so that borders do not score
    high for lying at the border.

    Args:
        features: [B, N, C] with N = t x h x w.
        kernel: Odd side of the average pool, in tokens.

    Returns:
        [B, N] in float32.
    """
    batch, tokens, channels = features.shape
    frames, height, width = grid
    maps = features.float().reshape(batch * frames, height, width, channels).permute(0, 3, 1, 2)
    smooth = functional.avg_pool2d(maps, kernel, stride=1, padding=kernel // 2, count_include_pad=False)
    return (maps - smooth).norm(dim=1).reshape(batch, tokens)


def distance_to_mean(features: Tensor) -> Tensor:
    """Squared L2 distance of each token [B, N, C] to the mean token (FastVAR's score)."""
    features = features.float()
    return (features - features.mean(dim=1, keepdim=True)).square().sum(dim=-1)


def change_scores(previous: Tensor | None, current: Tensor, grid: Grid) -> Tensor:
    """1 - cosine similarity of the accumulated codes before and after the last scale (LazyVAR).

    Args:
        previous, current: [B, d, h', w'] or [B, d, t', h', w'].
        grid: Grid of the scale to score; the maps are averaged down, or interpolated up, to it.

    Returns:
        [B, N] in float32; all ones where there is no previous map of the same clip.
    """
    frames, height, width = grid
    if previous is None or previous.shape != current.shape:
        return current.new_ones(current.shape[0], frames * height * width, dtype=torch.float32)
    change = 1.0 - functional.cosine_similarity(previous.float(), current.float(), dim=1)
    if change.dim() == 3:
        change = change.unsqueeze(1)
    return functional.adaptive_avg_pool3d(change.unsqueeze(1), grid).flatten(1)


def normalise(scores: Tensor, how: str) -> Tensor:
    """Makes scores [B, N] of different kinds comparable, image by image.

    Args:
        how: "minmax" maps an image's scores onto 0..1; "rank" replaces each by the share of lower ones;
            "deviation" gives mean 0 and standard deviation 1.
    """
    if how == "rank":
        lower = torch.searchsorted(scores.sort(dim=1).values, scores.contiguous())
        return lower.float() / scores.shape[1]
    if how == "deviation":
        centred = scores - scores.mean(dim=1, keepdim=True)
        return centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(1e-12)


@scorer("structure+texture")
def structure_and_texture(
    tokens: ScoringInput,
    *,
    structure_weight: float = 0.5,
    normalisation: str = "minmax",
    kernel: int = 3,
    iterations: int = 5,
) -> Tensor:
    """Weighted sum of both normalised scores (StepVAR, eq. 7)."""
    structure_part = normalise(structure(tokens, iterations=iterations), normalisation)
    texture_part = normalise(texture(tokens, kernel=kernel), normalisation)
    return structure_weight * structure_part + (1.0 - structure_weight) * texture_part


@scorer("structure")
def structure(tokens: ScoringInput, *, iterations: int = 5) -> Tensor:
    """See `structure_scores`."""
    return structure_scores(tokens.features, iterations, tokens.generator)


@scorer("texture")
def texture(tokens: ScoringInput, *, kernel: int = 3) -> Tensor:
    """See `texture_scores`."""
    return texture_scores(tokens.features, tokens.grid, kernel)


@scorer("distance")
def distance(tokens: ScoringInput) -> Tensor:
    """See `distance_to_mean`."""
    return distance_to_mean(tokens.features)


@scorer("change")
def change(tokens: ScoringInput) -> Tensor:
    """See `change_scores`."""
    return change_scores(*tokens.maps, tokens.grid)


@scorer("random")
def random(tokens: ScoringInput) -> Tensor:
    """Uniform random numbers, the baseline of every score."""
    images, count, _ = tokens.features.shape
    generator = tokens.generator
    # One draw for all images, so that none depends on the batch it is in.
    drawn = torch.rand(1, count, generator=generator, device=generator.device, dtype=torch.float32)
    return drawn.to(tokens.features.device).expand(images, -1)


def option_names(rule: str | Scorer, among: Mapping[str, Any]) -> list[str]:
    """Which of some options a score takes by keyword; one with `**options` takes all."""
    rule = SCORERS.find(rule) if isinstance(rule, str) else rule
    parameters = list(inspect.signature(rule).parameters.values())[1:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return list(among)
    bound = rule.keywords if isinstance(rule, partial) else {}
    known = {entry.name for entry in parameters if entry.kind is not inspect.Parameter.VAR_POSITIONAL}
    return [name for name in among if name in known and name not in bound]


def make_scorer(rule: str | Scorer, **options: Any) -> BoundScorer:
    """A score, by name or itself, with those of the options that it takes."""
    function = SCORERS.find(rule) if isinstance(rule, str) else rule
    return partial(function, **{name: options[name] for name in option_names(function, options)})
