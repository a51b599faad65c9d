"""What tables are made of: measurements of one contestant, a row of a table, one comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.metrics.statistics import Interval
from stepvar.report.contestants import DENSE

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Pictures:
    """Measurements of one contestant's pictures, in the order of the prompts.

    Attributes:
        psnr, ssim, likeness, agreement: Against the dense run; likeness is the scene network's distance.
        lpips: The same; None where it was not measured.
        detail: High-frequency energy.
        fit: Cosine with the prompt, by the scene network.
        passed: Whether everything asked for is there.
        features: [N, F].
    """

    psnr: Values
    ssim: Values
    likeness: Values
    agreement: Values
    detail: Values
    fit: Values
    passed: Values
    features: Values
    lpips: Values | None

    def first(self, count: int) -> Pictures:
        """The first pictures only, for a comparison with a contestant that drew fewer."""
        return Pictures(
            **{name: None if values is None else values[:count] for name, values in vars(self).items()}
        )


@dataclass(frozen=True)
class Row:
    """One contestant in one exhibit.

    Attributes:
        label: Its name there.
        kind: What its plan does, see `stepvar.report.contestants.KINDS`.
        n: Pictures.
        tokens, flops: Shares of the dense run's; `at_most` where that depends on the picture.
        cache_bytes, memory: Size of the KV cache, and growth of memory (None where it was not measured).
        seconds: Median time of one picture, end to end; `outside` is the text encoder's and the decoder's.
        speedup: Against dense, in the same rounds.
        psnr, ssim, likeness, lpips, agreement, detail: Means; `detail` is high-frequency energy over the
            dense run's, `lpips` None where it was not measured.
        frechet, real: Distances to the dense run's pictures, and to renders of what was asked for;
            `frechet_tells` whether there are more pictures than features, without which they say little.
        scene: Share of pictures with everything right; scene_change: against dense, in points.
        fit: Cosine with the prompt.
    """

    label: str
    kind: str
    n: int
    tokens: float
    flops: float
    at_most: bool
    cache_bytes: int
    memory: int | None
    seconds: float
    outside: float
    speedup: Interval
    psnr: Interval
    ssim: Interval
    likeness: Interval
    lpips: Interval | None
    agreement: Interval
    detail: Interval
    frechet: Interval
    frechet_tells: bool
    scene: Interval
    scene_change: Interval
    fit: Interval
    real: Interval

    @property
    def is_dense(self) -> bool:
        return self.kind == DENSE

    def as_json(self) -> dict[str, Any]:
        return _as_json(self)


@dataclass(frozen=True)
class Versus:
    """Ours against one rival, on the same prompts and seeds.

    Attributes:
        rival: Its label.
        psnr, likeness, frechet, scene: Ours minus theirs, the scene score in points.
        time: Our median time over theirs.
    """

    rival: str
    psnr: Interval
    likeness: Interval
    frechet: Interval
    scene: Interval
    time: Interval

    @property
    def nearer(self) -> bool:
        """Whether our pictures are nearer to the dense run's on both measures, beyond doubt."""
        return self.psnr.above_zero and self.frechet.below_zero

    @property
    def farther(self) -> bool:
        return self.psnr.below_zero and self.frechet.above_zero

    def as_json(self) -> dict[str, Any]:
        return _as_json(self)


@dataclass(frozen=True)
class EqualTime:
    """Ours against one rival, ours pruned until it takes the rival's time.

    Attributes:
        psnr, frechet, scene: Ours minus theirs, the scene score in points.
        seconds: The time.
    """

    psnr: Interval
    frechet: Interval
    scene: Interval
    seconds: float

    @property
    def better(self) -> bool:
        """Nearer to the dense run on both measures, beyond doubt, and not known to be worse on scenes."""
        return self.psnr.above_zero and self.frechet.below_zero and self.scene.high >= 0.0

    @property
    def not_better(self) -> bool:
        return self.psnr.high <= 0.0 or self.frechet.low >= 0.0 or self.scene.high < 0.0

    def as_json(self) -> dict[str, Any]:
        return _as_json(self)


def _as_json(record: Any) -> dict[str, Any]:
    return {
        name: value.as_json() if isinstance(value, Interval) else value
        for name, value in vars(record).items()
    }
