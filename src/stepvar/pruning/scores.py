"""Token scores: pure functions from the features of a token map to one number a token.

Shapes: B images, N = t x h x w tokens in row-major order, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from stepvar.generation.schedule import Grid


@dataclass(frozen=True)
class ScoringInput:
    """What a scorer may look at.

    Attributes:
        features: [B, N, C] hidden states at the entry of the first narrowed layer.
        grid: (t, h, w) with t x h x w = N.
        maps: Accumulated codes before the previous scale and before this one, each
            [B, d, h', w'] (or [B, d, t', h', w']); the former is None at the first scales.
        generator: The method's own random numbers, apart from those of sampling.
    """

    features: Tensor
    grid: Grid
    maps: tuple[Tensor | None, Tensor]
    generator: torch.Generator


Scorer = Callable[[ScoringInput], Tensor]
"""Returns scores [B, N] in float32; larger is kept first."""

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
    start = torch.randn(min(BLOCK, channels), channels, generator=generator, device=generator.device)
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


def make_scorer(
    name: str,
    *,
    structure_weight: float = 0.5,
    normalisation: str = "minmax",
    kernel: int = 3,
    iterations: int = 5,
) -> Scorer:
    """Builds a scorer by name.

    Args:
        name: One of `SCORERS`.
        structure_weight: Weight of structure in "structure+texture"; texture has the rest.
        normalisation: See `normalise`.
        kernel: See `texture_scores`.
        iterations: See `principal_component`.
    """

    def structure(inputs: ScoringInput) -> Tensor:
        return structure_scores(inputs.features, iterations, inputs.generator)

    def texture(inputs: ScoringInput) -> Tensor:
        return texture_scores(inputs.features, inputs.grid, kernel)

    def fused(inputs: ScoringInput) -> Tensor:
        parts = normalise(structure(inputs), normalisation), normalise(texture(inputs), normalisation)
        return structure_weight * parts[0] + (1.0 - structure_weight) * parts[1]

    def random(inputs: ScoringInput) -> Tensor:
        batch, tokens, _ = inputs.features.shape
        generator = inputs.generator
        # One draw for all images, so that none depends on the batch it is in.
        drawn = torch.rand(1, tokens, generator=generator, device=generator.device)
        return drawn.to(inputs.features.device).expand(batch, -1)

    scorers: dict[str, Scorer] = {
        "structure+texture": fused,
        "structure": structure,
        "texture": texture,
        "distance": lambda inputs: distance_to_mean(inputs.features),
        "change": lambda inputs: change_scores(*inputs.maps, inputs.grid),
        "random": random,
    }
    return scorers[name]


SCORERS = ("structure+texture", "structure", "texture", "distance", "change", "random")
NORMALISATIONS = ("minmax", "rank", "deviation")
