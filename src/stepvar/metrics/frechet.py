"""Fréchet distance between two sets of pictures, from features of any extractor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.metrics.statistics import Interval, drawn_interval, normal_interval, resamples

Features = NDArray[np.floating[Any]]

FEWEST_RESAMPLES = 20
"""However many features there are."""

_LARGEST_COVARIANCES = 2**24
"""Numbers in the covariances of all resamples, up to which they are kept: 128 MiB each for a few copies."""

_MOST_WORK = 200 * 600**3
"""Resamples times the cube of pictures or features: half a minute of one core."""

_ENOUGH_FOR_PERCENTILES = 100


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
        _require_pictures(features)
    mean = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    covariances = [np.atleast_2d(np.cov(side.astype(np.float64), rowvar=False)) for side in (first, second)]
    root = _square_root(covariances[0])
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    overlap = np.sqrt(np.clip(product, 0.0, None)).sum()
    distance = mean @ mean + np.trace(covariances[0]) + np.trace(covariances[1]) - 2.0 * overlap
    return max(float(distance), 0.0)


class FrechetReference:
    """One set of pictures that many others are compared with, resampled once for all of them.

    A resample takes the same places of both sets, so the other set must show the same prompts in the same
    order. With few features distances come from covariances; with many, from products of pictures, which are
    as exact and take memory for pictures x pictures alone. There, resamples become fewer as one takes longer:
    with the fewest, `FEWEST_RESAMPLES`, the width of an interval has a standard error of 16 %.

    Args:
        features: [N, F] of the reference, N of at least 2.
        repeats: Resamples, at most.

    Raises:
        ValueError: When there are too few pictures.
    """

    def __init__(self, features: Features, repeats: int = 200) -> None:
        _require_pictures(features)
        self.shape = features.shape
        count, width = features.shape
        self._few = False
        self._distances: Callable[[Features, NDArray[np.float64]], NDArray[np.float64]]
        if (repeats + 1) * width**2 > _LARGEST_COVARIANCES:
            affordable = max(FEWEST_RESAMPLES, int(_MOST_WORK / min(count, width) ** 3))
            self._few = affordable < min(repeats, _ENOUGH_FOR_PERCENTILES)
            repeats = min(repeats, affordable)
            self._distances = _Products(features).distances
        # The first row takes every picture once: the distance itself.
        places = [np.arange(count), *resamples(count, repeats)]
        self.counts = np.stack([np.bincount(row, minlength=count) for row in places]).astype(np.float64)
        if not hasattr(self, "_distances"):
            self._distances = _Covariances(features, self.counts).distances

    def distances(self, others: Features) -> NDArray[np.float64]:
        """Distance of the others' features [N, F], followed by those of all resamples.

        Raises:
            ValueError: When they do not fit the reference.
        """
        if others.shape != self.shape:
            raise ValueError(
                "Features of the same pictures and extractor are needed; got "
                f"{self.shape} and {others.shape}."
            )
        return np.maximum(self._distances(others, self.counts), 0.0)

    def interval(self, others: Features) -> Interval:
        """Distance of the others with its interval."""
        return self.interval_of(self.distances(others))

    def difference(self, ours: Features, theirs: Features) -> Interval:
        """How much farther `ours` is than `theirs`; below 0, ours is nearer."""
        return self.interval_of(self.distances(ours) - self.distances(theirs))

    def interval_of(self, values: NDArray[np.float64]) -> Interval:
        """The interval of a number made of distances, from its value and its resamples."""
        value, drawn, count = float(values[0]), values[1:], self.shape[0]
        if self._few:
            return normal_interval(value, drawn, count)
        return drawn_interval(value, drawn, count, centred=True)


class _Covariances:
    """Distances of resamples from covariance matrices [R, F, F], whose roots are kept for the reference."""

    def __init__(self, features: Features, counts: NDArray[np.float64]) -> None:
        self.means, self.covariances = _moments(features, counts)
        self.roots = _square_root(self.covariances)

    def distances(self, others: Features, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        means, covariances = _moments(others, counts)
        traces = np.trace(self.covariances + covariances, axis1=1, axis2=2)
        product = np.linalg.eigvalsh(self.roots @ covariances @ self.roots)
        overlap = np.sqrt(np.clip(product, 0.0, None)).sum(axis=1)
        return ((self.means - means) ** 2).sum(axis=1) + traces - 2.0 * overlap


class _Products:
    """Distances of resamples from products of pictures, without any matrix of features x features.

    With centred features A and B [N, F] of the two sets, tr((C1 C2)^(1/2)) is the sum of the singular values
    of A B^T / (N - 1). Weights of a resample scale the rows of A and B, and move their means.
    """

    def __init__(self, features: Features) -> None:
        self.features = features.astype(np.float64)

    def distances(self, others: Features, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([self._distance(others.astype(np.float64), weights) for weights in counts])

    def _distance(self, others: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        count = weights.sum()
        taken = weights > 0.0
        rows, scale = weights[taken, None] / count, np.sqrt(weights[taken, None] / (count - 1))
        sides: list[NDArray[np.float64]] = []
        means: list[NDArray[np.float64]] = []
        spread = 0.0
        for features in (self.features[taken], others[taken]):
            means.append((rows * features).sum(axis=0))
            side = scale * (features - means[-1])
            spread += float((side**2).sum())
            # More pictures than features are replaced by a triangle with the same products.
            sides.append(_triangle(side) if len(side) > side.shape[1] else side)
        overlap = np.linalg.svd(sides[0] @ sides[1].T, compute_uv=False).sum()
        return float(((means[0] - means[1]) ** 2).sum() + spread - 2.0 * overlap)


def _triangle(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """A square matrix [F, F] with the same R^T R as rows [N, F]."""
    triangle: Any = np.linalg.qr(rows, mode="r")  # numpy's stub gives this mode a pair
    return np.asarray(triangle)


def frechet_interval(dense: Features, pruned: Features, repeats: int = 200) -> Interval:
    """Fréchet distance of a method's pictures to the dense run's, on the same prompts and seeds.

    The cost is bounded, see `FrechetReference`: 600 pictures of 2,048 features take seconds.
    """
    return FrechetReference(dense, repeats).interval(pruned)


def _moments(features: Features, counts: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Means [R, F] and covariances [R, F, F] of resamples that take each picture `counts` [R, N] times."""
    count, width = features.shape
    middle = features.mean(axis=0, dtype=np.float64)
    centred = features.astype(np.float64) - middle
    means = counts @ centred / count
    # Products of all pairs of features, in blocks of bounded memory.
    block = max(1, 4_000_000 // (count * width))
    parts = [
        counts @ (centred[:, start : start + block, None] * centred[:, None, :]).reshape(count, -1)
        for start in range(0, width, block)
    ]
    products = np.concatenate(parts, axis=1).reshape(-1, width, width) / count
    covariances = (products - means[:, :, None] * means[:, None, :]) * (count / (count - 1))
    return means + middle, covariances


def _require_pictures(features: Features) -> None:
    if len(features) < 2:
        raise ValueError(
            f"A Fréchet distance needs at least 2 pictures a side; got {len(features)}: draw more."
        )


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


def _square_root(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Roots of symmetric matrices [..., F, F] without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrices)
    scaled = vectors * np.sqrt(np.clip(values, 0.0, None))[..., None, :]
    return scaled @ np.swapaxes(vectors, -1, -2)
