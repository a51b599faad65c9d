"""How near each scale comes to what the machine can do: its matrix products alone, and its copies.

A run is recorded once, operation by operation. Every matrix product in it is then timed alone, with the same
shapes and number format. Attention, whose products are fused with a softmax, counts with its products' FLOPs
at the best rate that any other product reached. The share of a scale is the time that its products need alone
over the time that it took; what is missing went into everything else. The second limit is memory: operands
and results of the products, at the rate at which the machine copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from stepvar.generation.progress import Observer, ScaleReport

_COPIED_BYTES = 2**26
"""Of the tensor that the copy rate is measured with: larger than the caches of usual processors."""

LAST_SCALES = 4
"""Scales that the summary figure is over: the last ones that run, which hold most of the tokens."""


@dataclass(frozen=True)
class Product:
    """Matrix products [batch, rows, inner] x [batch, inner, columns].

    Attributes:
        batch: How many at once; 1 for a linear layer.
        rows, inner, columns: Sizes.
        dtype: Number format.
    """

    batch: int
    rows: int
    inner: int
    columns: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add as two."""
        return 2 * self.batch * self.rows * self.inner * self.columns

    @property
    def bytes(self) -> int:
        """Bytes of both operands and of the result."""
        entries = self.rows * self.inner + self.inner * self.columns + self.rows * self.columns
        return self.batch * entries * self.dtype.itemsize

    def seconds_alone(self, device: torch.device, min_seconds: float = 0.02) -> float:
        """Median time of this product with nothing around it."""
        sizes = ((self.rows, self.inner), (self.inner, self.columns), (self.rows, self.columns))
        left, right, out = (torch.zeros(self.batch, *size, dtype=self.dtype, device=device) for size in sizes)
        if self.batch == 1:
            left, right, out = left[0], right[0], out[0]
        return _median_seconds(
            "torch.matmul(left, right, out=out)", {"left": left, "right": right, "out": out}, min_seconds
        )


@dataclass(frozen=True)
class FusedAttention:
    """Both products of attention, [batch, queries, channels] to [batch, keys, channels], in one kernel.

    Attributes:
        batch: Rows times heads.
        queries, keys, channels: Sizes.
        dtype: Number format.
    """

    batch: int
    queries: int
    keys: int
    channels: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Floating-point operations of the two products."""
        return 4 * self.batch * self.queries * self.keys * self.channels

    @property
    def bytes(self) -> int:
        """Bytes of queries, keys, values and results; the scores never reach memory."""
        return 2 * self.batch * (self.queries + self.keys) * self.channels * self.dtype.itemsize


Work = Product | FusedAttention


def _linear(source: Tensor, weight: Tensor, *rest: Any) -> list[Work]:
    rows = prod(source.shape[:-1])
    return [Product(1, rows, source.shape[-1], weight.shape[0], source.dtype)]


def _mm(left: Tensor, right: Tensor, *rest: Any) -> list[Work]:
    return [Product(1, left.shape[0], left.shape[1], right.shape[1], left.dtype)]


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *rest: Any) -> list[Work]:
    return _mm(left, right)


def _bmm(left: Tensor, right: Tensor, *rest: Any) -> list[Work]:
    return [Product(left.shape[0], left.shape[1], left.shape[2], right.shape[2], left.dtype)]


def _baddbmm(bias: Tensor, left: Tensor, right: Tensor, *rest: Any) -> list[Work]:
    return _bmm(left, right)


def _attention(query: Tensor, key: Tensor, *rest: Any) -> list[Work]:
    batch, queries, channels = prod(query.shape[:-2]), query.shape[-2], query.shape[-1]
    return [FusedAttention(batch, queries, key.shape[-2], channels, query.dtype)]


_PRODUCTS: Mapping[str, Callable[..., list[Work]]] = {
    "aten::linear": _linear,
    "aten::mm": _mm,
    "aten::addmm": _addmm,
    "aten::bmm": _bmm,
    "aten::baddbmm": _baddbmm,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
}
"""Operations that are matrix products, by their names in torch."""


@dataclass
class ScaleWork:
    """What one scale ran.

    Attributes:
        products: How often each product.
        operations: Calls of operations that compute; views are not counted.
    """

    products: Counter[Work] = field(default_factory=Counter)
    operations: int = 0


class WorkRecorder(TorchDispatchMode):
    """Records the operations of each scale of a run; it is passed to that run as its observer too.

    The first scale's record has what a run does before it in it, reading the text for example.

    Attributes:
        scales: One record a scale, in order; skipped ones are empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[ScaleWork] = []
        self._current = ScaleWork()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        products = _PRODUCTS.get(func.name().partition(".")[0])
        if products is not None:
            self._current.products.update(products(*args))
        if not func.is_view:
            self._current.operations += 1
        return func(*args, **(kwargs or {}))

    def observe(self, report: ScaleReport) -> None:
        """Closes the record of a scale."""
        self.scales.append(self._current)
        self._current = ScaleWork()


@dataclass(frozen=True)
class MachineLimits:
    """What a machine does when it does nothing else.

    Attributes:
        product_seconds: Of each product alone, and of attention at the best rate of these.
        copy_rate: Bytes read and written a second when a large tensor is copied.
    """

    product_seconds: Mapping[Work, float]
    copy_rate: float

    @classmethod
    def measure(cls, runs: Sequence[Sequence[ScaleWork]], device: torch.device) -> MachineLimits:
        """Times every product of some runs, and a copy."""
        kinds = {each for scales in runs for work in scales for each in work.products}
        seconds: dict[Work, float] = {
            each: each.seconds_alone(device) for each in kinds if isinstance(each, Product)
        }
        best = max((each.flops / spent for each, spent in seconds.items()), default=1.0)
        seconds |= {each: each.flops / best for each in kinds if isinstance(each, FusedAttention)}
        source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copied = _median_seconds("target.copy_(source)", {"target": target, "source": source}, 0.2)
        return cls(seconds, 2 * _COPIED_BYTES / copied)

    def describe(self, work: ScaleWork, seconds: float) -> dict[str, Any]:
        """A scale's products, and its share of both limits.

        Args:
            work: What the scale ran.
            seconds: How long it took.
        """
        alone = sum(count * self.product_seconds[each] for each, count in work.products.items())
        moved = sum(count * each.bytes for each, count in work.products.items())
        return {
            "operations": work.operations,
            "product_flops": sum(count * each.flops for each, count in work.products.items()),
            "product_seconds": alone,
            "product_share": alone / seconds if seconds else None,
            "bytes": moved,
            "copy_share": moved / self.copy_rate / seconds if seconds else None,
        }


def record_work(run: Callable[[Observer], object]) -> list[ScaleWork]:
    """The work of every scale of a run.

    Args:
        run: Draws once, with the observer that it is given.
    """
    recorder = WorkRecorder()
    mode: AbstractContextManager[object] = recorder
    with mode:
        run(recorder.observe)
    return recorder.scales


def share_of_last_scales(scales: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the product limit over the last scales that ran, all of them together.

    Args:
        scales: Entries with "seconds" and, in "roofline", "product_seconds".
    """
    ran = [scale for scale in scales[1:] if scale["seconds"] > 0.0][-LAST_SCALES:]
    spent = sum(scale["seconds"] for scale in ran)
    alone: float = sum(scale["roofline"]["product_seconds"] for scale in ran)
    return alone / spent if spent else None


def _median_seconds(statement: str, variables: dict[str, Any], min_seconds: float) -> float:
    timer = Timer(statement, globals={"torch": torch, **variables}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=min_seconds).median)
