"""Records of a report: measures of one configuration, a row of a table, a comparison of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.metrics.statistics import Interval
from stepvar.report.configurations import DENSE

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Pictures:
    """Measurements of one configuration's pictures, in the order of the prompts.

    Attributes:
        psnr, ssim, scene_distance, agreement: Against the dense run.
        lpips: The same; None where it was not measured.
        detail: High-frequency energy.
        text_fit: Cosine with the prompt, by the scene network.
        passed: Whether everything that the prompt asks for is there.
        lpips, text_fit, passed: None where they were not measured.
        features: [N, F].
    """

    psnr: Values
    ssim: Values
    scene_distance: Values
    agreement: Values
    detail: Values
    features: Values
    lpips: Values | None = None
    text_fit: Values | None = None
    passed: Values | None = None

    def first(self, count: int) -> Pictures:
        """The first pictures only, for a comparison with a configuration with fewer."""
        cut = {name: values[:count] for name, values in vars(self).items() if values is not None}
        return Pictures(**cut)


@dataclass(frozen=True)
class PromptMeasures:
    """Measures against the prompts, where scenes were checked.

    Attributes:
        scene: Share of pictures with everything right; scene_change: against dense, in points.
        text_fit: Cosine with the prompt.
        real: Fréchet distance to renders of what was asked for.
    """

    scene: Interval
    scene_change: Interval
    text_fit: Interval
    real: Interval


@dataclass(frozen=True)
class Row:
    """One configuration in one table.

    Attributes:
        label: Its name there.
        kind: Of its plan, see `stepvar.report.configurations.KINDS`.
        n: Pictures.
        tokens, flops: Shares of the dense run's; `at_most` where that depends on the picture.
        cache_bytes, memory: Size of the KV cache, and growth of memory (None where it was not measured).
        seconds: Median time of one picture, end to end; `outside` is the text encoder's and the decoder's.
        speedup: Against dense, in the same rounds.
        psnr, ssim, scene_distance, lpips, agreement, detail: Means; `detail` is high-frequency energy over
            the dense run's, `lpips` None where it was not measured.
        frechet: Distance to the dense run's pictures; `frechet_valid` whether there are more pictures than
            features, without which Fréchet distances say little.
        prompt: Measures against the prompts; None where scenes were not checked.
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
    scene_distance: Interval
    lpips: Interval | None
    agreement: Interval
    detail: Interval
    frechet: Interval
    frechet_valid: bool
    prompt: PromptMeasures | None

    @property
    def is_dense(self) -> bool:
        return self.kind == DENSE

    def as_json(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "prompt"}
        return _as_json({**own, **({} if self.prompt is None else vars(self.prompt))})


@dataclass(frozen=True)
class PairedDifference:
    """Ours against one rival, on the same prompts and seeds.

    Attributes:
        rival: Its label.
        psnr, scene_distance, frechet, scene: Ours minus theirs; the scene score in points, None where it was
            not measured.
        time: Our median time over theirs.
    """

    rival: str
    psnr: Interval
    scene_distance: Interval
    frechet: Interval
    scene: Interval | None
    time: Interval

    @property
    def nearer(self) -> bool:
        """Whether our pictures are nearer to the dense run's on both measures, beyond doubt."""
        return self.psnr.above_zero and self.frechet.below_zero

    @property
    def farther(self) -> bool:
        return self.psnr.below_zero and self.frechet.above_zero

    def as_json(self) -> dict[str, Any]:
        return _as_json(vars(self))


@dataclass(frozen=True)
class EqualTimeDifference:
    """Ours against one rival, ours pruned until it takes the rival's time.

    Attributes:
        psnr, frechet, scene: Ours minus theirs; the scene score in points, None where it was not measured.
        seconds: The time.
    """

    psnr: Interval
    frechet: Interval
    scene: Interval | None
    seconds: float

    @property
    def better(self) -> bool:
        """Nearer to the dense run on both measures, beyond doubt, and not known to be worse on scenes."""
        return self.psnr.above_zero and self.frechet.below_zero and not self._worse_on_scenes

    @property
    def not_better(self) -> bool:
        return self.psnr.high <= 0.0 or self.frechet.low >= 0.0 or self._worse_on_scenes

    @property
    def _worse_on_scenes(self) -> bool:
        return self.scene is not None and self.scene.high < 0.0

    def as_json(self) -> dict[str, Any]:
        return _as_json(vars(self))


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.as_json() if isinstance(value, Interval) else value for name, value in values.items()}
