"""Selection of the kept positions by score."""

from __future__ import annotations

from torch import Tensor


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest scores of each image.

    Args:
        scores: [B, N].
        count: K, fixed by the plan, so that shapes never depend on the picture.

    Returns:
        [B, K] in ascending order of position; of equal scores the first position wins.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values
