"""Fréchet distance between two sets of pictures, from features of any extractor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.statistics import Interval, statistic_interval

Features = NDArray[np.floating[Any]]


def frechet_distance(first: Features, second: Features) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussian fits.

    Args:
        first, second: [N, F] and [M, F] features, N and M of at least 2. The distance falls with N and M:
            compare only numbers from equally many pictures.

    Raises:
        ValueError: When there are too few pictures, or the features do not fit together.

    Source: Heusel et al. 2017 (FID, with Inception features).
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Features of one extractor are needed, one row a picture; got {first.shape} and {second.shape}."
        )
    for features in (first, second):
        if len(features) < 2:
            raise ValueError(
                f"A Fréchet distance needs at least 2 pictures a side; got {len(features)}: draw more."
            )
    mean = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    covariances = [np.atleast_2d(np.cov(side.astype(np.float64), rowvar=False)) for side in (first, second)]
    root = _square_root(covariances[0])
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    overlap = np.sqrt(np.clip(product, 0.0, None)).sum()
    distance = mean @ mean + np.trace(covariances[0]) + np.trace(covariances[1]) - 2.0 * overlap
    return max(float(distance), 0.0)


def frechet_interval(dense: Features, pruned: Features, repeats: int = 200) -> Interval:
    """Fréchet distance of a method's pictures to the dense run's, on the same prompts and seeds."""
    return statistic_interval(
        lambda places: frechet_distance(dense[places], pruned[places]), len(dense), repeats, centred=True
    )


def frechet_difference(dense: Features, ours: Features, theirs: Features, repeats: int = 200) -> Interval:
    """How much further from the dense run's pictures `ours` is than `theirs`; below 0, ours is nearer."""

    def difference(places: NDArray[np.intp]) -> float:
        reference = dense[places]
        return frechet_distance(reference, ours[places]) - frechet_distance(reference, theirs[places])

    return statistic_interval(difference, len(dense), repeats, centred=True)


def require_enough(pictures: int, features: int, what: str) -> None:
    """Refuses a distance whose covariance could not be full: fewer pictures than features.

    Raises:
        ValueError: Naming both numbers.
    """
    if pictures <= features:
        raise ValueError(
            f"{what} has {pictures} pictures, but a Fréchet distance over {features} features needs more "
            f"than {features}: draw more, or take an extractor with fewer features."
        )


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
