"""The list of benchmarks: a new one is a file of this folder and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from stepvar.evaluation.benchmarks import dpg, geneval, mjhq, vbench
from stepvar.evaluation.benchmarks.benchmark import Benchmark, Item

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {module.BENCHMARK.name: module.BENCHMARK for module in (geneval, dpg, mjhq, vbench)}
)
"""By name, as on the command line."""

__all__ = ["BENCHMARKS", "Benchmark", "Item"]
