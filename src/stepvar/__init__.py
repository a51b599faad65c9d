"""stepvar: fast next-scale-prediction image generators, with structure-texture guided pruning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepvar.embedded import load_embedded
    from stepvar.evaluation.calibration import calibrate
    from stepvar.generation.cascade import Cascade
    from stepvar.generation.report import Report, Summary
    from stepvar.generation.schedule import Scale, ScaleSchedule
    from stepvar.laboratory.run import reproduce
    from stepvar.models.infinity.checkpoints import convert
    from stepvar.models.infinity.pipeline import InfinityPipeline
    from stepvar.models.infinity.tokenizer import InfinityTokenizer
    from stepvar.models.infinity.transformer import InfinityTransformer
    from stepvar.presets import PRESETS
    from stepvar.pruning.fastvar import FastVAR
    from stepvar.pruning.scalekv import ScaleKV
    from stepvar.pruning.skipvar import SkipVAR
    from stepvar.pruning.stepvar import StepVAR

__version__ = "0.1.0"

# torch takes seconds to import, diffusers and transformers more: each name loads what it needs.
_HOMES = {
    "Cascade": "stepvar.generation.cascade",
    "FastVAR": "stepvar.pruning.fastvar",
    "InfinityPipeline": "stepvar.models.infinity.pipeline",
    "InfinityTokenizer": "stepvar.models.infinity.tokenizer",
    "InfinityTransformer": "stepvar.models.infinity.transformer",
    # diffusers looks up the base class of a saved component on the library that the component names.
    "ModelMixin": "diffusers",
    "PRESETS": "stepvar.presets",
    "Report": "stepvar.generation.report",
    "Scale": "stepvar.generation.schedule",
    "ScaleKV": "stepvar.pruning.scalekv",
    "ScaleSchedule": "stepvar.generation.schedule",
    "SkipVAR": "stepvar.pruning.skipvar",
    "StepVAR": "stepvar.pruning.stepvar",
    "Summary": "stepvar.generation.report",
    "calibrate": "stepvar.evaluation.calibration",
    "convert": "stepvar.models.infinity.checkpoints",
    "load_embedded": "stepvar.embedded",
    "reproduce": "stepvar.laboratory.run",
}

__all__ = [
    "PRESETS",
    "Cascade",
    "FastVAR",
    "InfinityPipeline",
    "InfinityTokenizer",
    "InfinityTransformer",
    "Report",
    "Scale",
    "ScaleKV",
    "ScaleSchedule",
    "SkipVAR",
    "StepVAR",
    "Summary",
    "calibrate",
    "convert",
    "load_embedded",
    "reproduce",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stepvar' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
