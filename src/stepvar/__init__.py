"""stepvar: fast next-scale-prediction image generators, with structure-texture guided pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepvar.checkpoints.components import load_reference
from stepvar.loading.diffusers_names import register as _register_with_diffusers
from stepvar.models import MODELS

if TYPE_CHECKING:
    from stepvar.embedded import load_embedded as load_embedded
    from stepvar.evaluation.calibration import calibrate as calibrate
    from stepvar.evaluation.calibration import calibrate_recovery as calibrate_recovery
    from stepvar.generation.cascade import Cascade as Cascade
    from stepvar.generation.report import Report as Report
    from stepvar.generation.report import Summary as Summary
    from stepvar.generation.schedule import Scale as Scale
    from stepvar.generation.schedule import ScaleSchedule as ScaleSchedule
    from stepvar.loading.conversion import convert as convert
    from stepvar.loading.official_objects import from_official as from_official
    from stepvar.loading.opener import load as load
    from stepvar.models.hart.pipeline import HARTPipeline as HARTPipeline
    from stepvar.models.hart.transformer import HARTTransformer as HARTTransformer
    from stepvar.models.hart.vae import HARTVAE as HARTVAE
    from stepvar.models.infinity.pipeline import InfinityPipeline as InfinityPipeline
    from stepvar.models.infinity.transformer import InfinityTransformer as InfinityTransformer
    from stepvar.models.infinity.vae import InfinityVAE as InfinityVAE
    from stepvar.models.infinitystar.pipeline import InfinityStarPipeline as InfinityStarPipeline
    from stepvar.models.infinitystar.transformer import InfinityStarTransformer as InfinityStarTransformer
    from stepvar.models.infinitystar.vae import InfinityStarVAE as InfinityStarVAE
    from stepvar.models.plan_files import load_plan as load_plan
    from stepvar.models.plan_files import save_plan as save_plan
    from stepvar.models.presets import PRESETS as PRESETS
    from stepvar.models.switti.pipeline import SwittiPipeline as SwittiPipeline
    from stepvar.models.switti.transformer import SwittiTransformer as SwittiTransformer
    from stepvar.models.switti.vae import SwittiVAE as SwittiVAE
    from stepvar.models.var.pipeline import VARPipeline as VARPipeline
    from stepvar.models.var.transformer import VARTransformer as VARTransformer
    from stepvar.models.var.vae import VARVAE as VARVAE
    from stepvar.models.varedit.pipeline import VAREditPipeline as VAREditPipeline
    from stepvar.pruning.fastervar import FasterVAR as FasterVAR
    from stepvar.pruning.fastvar import FastVAR as FastVAR
    from stepvar.pruning.int8_cache import Int8Cache as Int8Cache
    from stepvar.pruning.scalekv import ScaleKV as ScaleKV
    from stepvar.pruning.skipvar import SkipVAR as SkipVAR
    from stepvar.pruning.stepvar import StepVAR as StepVAR
    from stepvar.report.run import reproduce as reproduce

__version__ = "0.1.0"

# torch takes seconds to import, diffusers and transformers more: a name loads "module:name" on first use.
_NAMES = {
    "Cascade": "stepvar.generation.cascade:Cascade",
    "FastVAR": "stepvar.pruning.fastvar:FastVAR",
    "FasterVAR": "stepvar.pruning.fastervar:FasterVAR",
    "PRESETS": "stepvar.models.presets:PRESETS",
    "Report": "stepvar.generation.report:Report",
    "Scale": "stepvar.generation.schedule:Scale",
    "Int8Cache": "stepvar.pruning.int8_cache:Int8Cache",
    "ScaleKV": "stepvar.pruning.scalekv:ScaleKV",
    "ScaleSchedule": "stepvar.generation.schedule:ScaleSchedule",
    "SkipVAR": "stepvar.pruning.skipvar:SkipVAR",
    "StepVAR": "stepvar.pruning.stepvar:StepVAR",
    "Summary": "stepvar.generation.report:Summary",
    "calibrate": "stepvar.evaluation.calibration:calibrate",
    "calibrate_recovery": "stepvar.evaluation.calibration:calibrate_recovery",
    "convert": "stepvar.loading.conversion:convert",
    "from_official": "stepvar.loading.official_objects:from_official",
    "load": "stepvar.loading.opener:load",
    "load_embedded": "stepvar.embedded:load_embedded",
    "load_plan": "stepvar.models.plan_files:load_plan",
    "reproduce": "stepvar.report.run:reproduce",
    "save_plan": "stepvar.models.plan_files:save_plan",
    # Pipeline, transformer and VAE of every model.
    **{name: reference for spec in MODELS for name, reference in spec.public_classes.items()},
}

__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # diffusers looks up the base class of a saved component on the library that the component names.
    reference = "diffusers:ModelMixin" if name == "ModelMixin" else _NAMES.get(name)
    if reference is None:
        raise AttributeError(f"module 'stepvar' has no attribute {name!r}")
    return load_reference(reference)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# Its own openers find our pipelines then; it is imported when somebody asks for it.
_register_with_diffusers()
