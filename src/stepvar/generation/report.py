"""Summary and report of a generation: what a plan will cost, and how it ran; as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import ScaleReport


@dataclass(frozen=True)
class ScaleCost:
    """Planned cost of one scale.

    Attributes:
        flops: Floating-point operations of the transformer, all rows, a multiply-add as two.
        cache_bytes: What it adds to the room that keys and values need, all layers and rows.
        rows: Batch rows, unconditional copies included.
    """

    flops: int
    cache_bytes: int
    rows: int


@dataclass(frozen=True)
class PrefixCost:
    """Planned cost of a pass before the first scale, which leaves keys and values behind.

    Attributes:
        name: What runs, "source" for example.
        tokens: Of one picture.
        flops: Floating-point operations of the transformer, all rows, a multiply-add as two.
        cache_bytes: Its keys and values, all layers and rows.
        rows: Batch rows, unconditional copies included.
    """

    name: str
    tokens: int
    flops: int
    cache_bytes: int
    rows: int

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens": self.tokens,
            "rows": self.rows,
            "flops": self.flops,
            "cache_bytes": self.cache_bytes,
        }


@dataclass(frozen=True)
class MemoryPlan:
    """Device memory that a generation will need, in bytes, computed before it runs.

    Attributes:
        weights: Of each part of the pipeline.
        cache: Keys and values.
        working: What each part works on at its widest point.
        layer: Weights of the largest layer.
    """

    weights: Mapping[str, int]
    cache: int
    working: Mapping[str, int]
    layer: int

    @property
    def resident(self) -> int:
        """Peak with all parts on the device."""
        return sum(self.weights.values()) + max(self._used(name) for name in self.weights)

    @property
    def offloaded(self) -> int:
        """Peak with one part on the device at a time."""
        return max(self.weights[name] + self._used(name) for name in self.weights)

    @property
    def streamed(self) -> int:
        """Peak when the transformer's weights come one layer at a time, which costs time."""
        return max(
            (self.layer if name == "transformer" else self.weights[name]) + self._used(name)
            for name in self.weights
        )

    def _used(self, part: str) -> int:
        return self.working[part] + (self.cache if part == "transformer" else 0)

    def as_json(self) -> dict[str, Any]:
        return {
            "weights": dict(self.weights),
            "cache": self.cache,
            "working": dict(self.working),
            "peak": {
                "all parts on the device": self.resident,
                "one part at a time": self.offloaded,
                "one layer at a time": self.streamed,
            },
        }

    def __str__(self) -> str:
        def gibibytes(value: int) -> str:
            return f"{value / 2**30:.2f} GiB" if value >= 2**26 else f"{value / 2**20:.2f} MiB"

        parts = ", ".join(f"{name} {gibibytes(size)}" for name, size in self.weights.items())
        return (
            f"Weights: {parts}; keys and values {gibibytes(self.cache)}.\n"
            f"Peak memory: {gibibytes(self.resident)} with all parts on the device, "
            f"{gibibytes(self.offloaded)} with one part at a time, "
            f"{gibibytes(self.streamed)} with one layer at a time (computed, not measured)."
        )


@dataclass(frozen=True)
class Summary:
    """What a plan will run, before anything runs.

    Attributes:
        plan: Tokens kept and scales skipped.
        costs: One a scale.
        dense_costs: The same without pruning.
        backend: Attention implementation.
        memory: Device memory, where the model has a formula for it.
        prefix: What runs before the first scale, where it is a pass of its own; None for none.
        dense_prefix: The same without pruning.
    """

    plan: GenerationPlan
    costs: tuple[ScaleCost, ...]
    dense_costs: tuple[ScaleCost, ...]
    backend: str = "torch scaled_dot_product_attention"
    memory: MemoryPlan | None = None
    prefix: PrefixCost | None = None
    dense_prefix: PrefixCost | None = None

    @property
    def flops(self) -> int:
        """Of everything that runs, what runs before the first scale included."""
        return sum(cost.flops for cost in self.costs) + (self.prefix.flops if self.prefix else 0)

    @property
    def dense_flops(self) -> int:
        before = self.dense_prefix.flops if self.dense_prefix else 0
        return sum(cost.flops for cost in self.dense_costs) + before

    @property
    def cache_bytes(self) -> int:
        before = self.prefix.cache_bytes if self.prefix else 0
        return sum(cost.cache_bytes for cost in self.costs) + before

    @property
    def tokens(self) -> int:
        """Tokens that leave the embedding of scales that run; pruned ones and a prefix are not counted."""
        return sum(entry.kept for entry in self.plan.scales)

    @property
    def dense_tokens(self) -> int:
        return sum(entry.scale.tokens for entry in self.plan.scales)

    def as_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "dense_tokens": self.dense_tokens,
            "flops": self.flops,
            "dense_flops": self.dense_flops,
            "cache_bytes": self.cache_bytes,
            "attention": self.backend,
            **({"memory": self.memory.as_json()} if self.memory else {}),
            **({"prefix": self.prefix.as_json()} if self.prefix else {}),
            "decides_per_picture": self.plan.decides,
            **({"fitted_to": self.plan.fitted_to.digest} if self.plan.fitted_to else {}),
            "scales": [
                {
                    "scale": str(entry.scale),
                    "tokens": entry.scale.tokens,
                    "kept": entry.kept,
                    "skipped": entry.skipped,
                    "pruned_layers": [entry.first_layer, entry.last_layer] if entry.prunes else None,
                    "rows": cost.rows,
                    "flops": cost.flops,
                    "cache_bytes": cost.cache_bytes,
                }
                for entry, cost in zip(self.plan.scales, self.costs, strict=True)
            ],
        }

    def __str__(self) -> str:
        width = max(9, *(len(str(entry.scale)) for entry in self.plan.scales))
        lines = [f"{'scale':>{width}} {'tokens':>7} {'kept':>7} {'GFLOP':>10} {'KV MiB':>8}"]
        before = self.prefix.tokens if self.prefix else 0
        if self.prefix:
            lines.append(
                f"{self.prefix.name:>{width}} {before:>7} {before:>7} "
                f"{self.prefix.flops / 1e9:>10.2f} {self.prefix.cache_bytes / 2**20:>8.2f}"
            )
        for entry, cost in zip(self.plan.scales, self.costs, strict=True):
            kept = "skipped" if entry.skipped else f"{entry.kept}"
            lines.append(
                f"{entry.scale!s:>{width}} {entry.scale.tokens:>7} {kept:>7} "
                f"{cost.flops / 1e9:>10.2f} {cost.cache_bytes / 2**20:>8.2f}"
            )
        lines.append(
            f"{'total':>{width}} {before + self.dense_tokens:>7} {before + self.tokens:>7} "
            f"{self.flops / 1e9:>10.2f} {self.cache_bytes / 2**20:>8.2f}"
        )
        saved = self.dense_flops / max(self.flops, 1)
        lines.append(f"{saved:.2f} x fewer transformer FLOPs than dense; attention: {self.backend}.")
        if self.memory is not None:
            lines.append(str(self.memory))
        if self.plan.decides:
            lines.append("The method decides picture by picture: this is the most that will run.")
        if self.plan.fitted_to is not None:
            lines.append(
                f"Pruned positions are filled by maps fitted to these weights ({self.plan.fitted_to.digest})."
            )
        return "\n".join(lines)


@dataclass
class Report:
    """How a generation ran.

    Attributes:
        scales: One report a scale.
        stages: Seconds of "text", "scales" and "decode".
        cache_bytes: Size of the KV cache.
        peak_bytes: Largest memory: of the device on CUDA, of the process elsewhere.
        seeds: One an image, None where a generator was passed.
        settings: What the picture depends on, ready for its metadata.
        choices: Sampled values by index of the scale.
    """

    scales: list[ScaleReport]
    stages: dict[str, float]
    cache_bytes: int
    peak_bytes: int
    seeds: Sequence[int | None]
    settings: dict[str, Any] = field(default_factory=dict)
    choices: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    @property
    def kept_tokens(self) -> int:
        return sum(report.plan.kept for report in self.scales)

    @property
    def total_tokens(self) -> int:
        return sum(report.plan.scale.tokens for report in self.scales)

    def __str__(self) -> str:
        width = max(9, *(len(str(report.plan.scale)) for report in self.scales))
        lines = [f"{'scale':>{width}} {'tokens':>7} {'kept':>7} {'rows':>5} {'ms':>9}"]
        for report in self.scales:
            kept = "skipped" if report.plan.skipped else f"{report.plan.kept}"
            lines.append(
                f"{report.plan.scale!s:>{width}} {report.plan.scale.tokens:>7} {kept:>7} "
                f"{report.rows:>5} {1000 * report.seconds:>9.1f}"
            )
        spent = 1000 * sum(report.seconds for report in self.scales)
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.stages.items())
        return "\n".join(
            [
                *lines,
                f"{'total':>{width}} {self.total_tokens:>7} {self.kept_tokens:>7} {'':>5} {spent:>9.1f}",
                f"Stages: {stages}; KV cache {self.cache_bytes / 2**20:.1f} MiB, "
                f"peak memory {self.peak_bytes / 2**20:.0f} MiB.",
            ]
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "stages": self.stages,
            "tokens": {"kept": self.kept_tokens, "total": self.total_tokens},
            "cache_bytes": self.cache_bytes,
            "peak_bytes": self.peak_bytes,
            "seeds": list(self.seeds),
            "settings": self.settings,
            "scales": [
                {
                    "scale": str(report.plan.scale),
                    "tokens": report.plan.scale.tokens,
                    "kept": report.plan.kept,
                    "skipped": report.plan.skipped,
                    "rows": report.rows,
                    "seconds": report.seconds,
                }
                for report in self.scales
            ],
        }
