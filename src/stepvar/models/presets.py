"""Presets of all models, by class name of the pipeline, then by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from stepvar.models import MODELS
from stepvar.pruning.presets import Preset

PRESETS: Mapping[str, Mapping[str, Preset]] = MappingProxyType(
    {spec.pipeline_name: spec.presets for spec in MODELS}
)
