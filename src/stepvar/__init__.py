"""stepvar: fast next-scale-prediction image generators, with structure-texture guided pruning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepvar.loading.diffusers_names import register as _register_with_diffusers

if TYPE_CHECKING:
    from stepvar.embedded import load_embedded
    from stepvar.evaluation.calibration import calibrate
    from stepvar.generation.cascade import Cascade
    from stepvar.generation.report import Report, Summary
    from stepvar.generation.schedule import Scale, ScaleSchedule
    from stepvar.loading.conversion import convert
    from stepvar.loading.official_objects import from_official
    from stepvar.loading.opener import load
    from stepvar.models.hart.pipeline import HARTPipeline
    from stepvar.models.hart.transformer import HARTTransformer
    from stepvar.models.hart.vae import HARTVAE
    from stepvar.models.infinity.pipeline import InfinityPipeline
    from stepvar.models.infinity.transformer import InfinityTransformer
    from stepvar.models.infinity.vae import InfinityVAE
    from stepvar.models.infinitystar.pipeline import InfinityStarPipeline
    from stepvar.models.infinitystar.transformer import InfinityStarTransformer
    from stepvar.models.infinitystar.vae import InfinityStarVAE
    from stepvar.models.presets import PRESETS
    from stepvar.models.switti.pipeline import SwittiPipeline
    from stepvar.models.switti.transformer import SwittiTransformer
    from stepvar.models.switti.vae import SwittiVAE
    from stepvar.models.var.pipeline import VARPipeline
    from stepvar.models.var.transformer import VARTransformer
    from stepvar.models.var.vae import VARVAE
    from stepvar.pruning.fastvar import FastVAR
    from stepvar.pruning.scalekv import ScaleKV
    from stepvar.pruning.skipvar import SkipVAR
    from stepvar.pruning.stepvar import StepVAR
    from stepvar.report.run import reproduce

__version__ = "0.1.0"

# torch takes seconds to import, diffusers and transformers more: each name loads what it needs.
_HOMES = {
    "Cascade": "stepvar.generation.cascade",
    "FastVAR": "stepvar.pruning.fastvar",
    "HARTPipeline": "stepvar.models.hart.pipeline",
    "HARTVAE": "stepvar.models.hart.vae",
    "HARTTransformer": "stepvar.models.hart.transformer",
    "InfinityPipeline": "stepvar.models.infinity.pipeline",
    "InfinityStarPipeline": "stepvar.models.infinitystar.pipeline",
    "InfinityStarVAE": "stepvar.models.infinitystar.vae",
    "InfinityStarTransformer": "stepvar.models.infinitystar.transformer",
    "InfinityVAE": "stepvar.models.infinity.vae",
    "InfinityTransformer": "stepvar.models.infinity.transformer",
    # diffusers looks up the base class of a saved component on the library that the component names.
    "ModelMixin": "diffusers",
    "PRESETS": "stepvar.models.presets",
    "Report": "stepvar.generation.report",
    "Scale": "stepvar.generation.schedule",
    "ScaleKV": "stepvar.pruning.scalekv",
    "ScaleSchedule": "stepvar.generation.schedule",
    "SkipVAR": "stepvar.pruning.skipvar",
    "StepVAR": "stepvar.pruning.stepvar",
    "Summary": "stepvar.generation.report",
    "SwittiPipeline": "stepvar.models.switti.pipeline",
    "SwittiVAE": "stepvar.models.switti.vae",
    "SwittiTransformer": "stepvar.models.switti.transformer",
    "VARPipeline": "stepvar.models.var.pipeline",
    "VARVAE": "stepvar.models.var.vae",
    "VARTransformer": "stepvar.models.var.transformer",
    "convert": "stepvar.loading.conversion",
    "from_official": "stepvar.loading.official_objects",
    "load": "stepvar.loading.opener",
    "calibrate": "stepvar.evaluation.calibration",
    "load_embedded": "stepvar.embedded",
    "reproduce": "stepvar.report.run",
}

__all__ = [
    "HARTVAE",
    "PRESETS",
    "VARVAE",
    "Cascade",
    "FastVAR",
    "HARTPipeline",
    "HARTTransformer",
    "InfinityPipeline",
    "InfinityStarPipeline",
    "InfinityStarTransformer",
    "InfinityStarVAE",
    "InfinityTransformer",
    "InfinityVAE",
    "Report",
    "Scale",
    "ScaleKV",
    "ScaleSchedule",
    "SkipVAR",
    "StepVAR",
    "Summary",
    "SwittiPipeline",
    "SwittiTransformer",
    "SwittiVAE",
    "VARPipeline",
    "VARTransformer",
    "calibrate",
    "convert",
    "from_official",
    "load",
    "load_embedded",
    "reproduce",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stepvar' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# Its own openers find our pipelines then; it is imported when somebody asks for it.
_register_with_diffusers()
