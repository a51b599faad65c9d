"""Golden cases of VAREdit: the whole edit, and the preparation of pictures."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.conformance.case import Case, Comparison
from stepvar.conformance.infinity import run_generation
from stepvar.conformance.infinity_parts import run_sampler_units
from stepvar.conformance.report import CaseReport, compare
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.checkpoints import transformer_from_state, vae_from_state
from stepvar.models.infinity.quantizer import quantize_multiscale
from stepvar.models.infinity.session import TextCondition
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.varedit.pictures import crop_result, fit_to_canvas
from stepvar.models.varedit.pipeline import VAREditPipeline
from stepvar.models.varedit.session import VAREditSession


@torch.inference_mode()
def run(case: Case) -> CaseReport:
    """Runs a VAREdit case in float32 on the CPU, by its pipeline's parts; compares every stored tensor."""
    comparison = Comparison(case)
    if case.info.get("kind") == "preprocess":
        _run_pictures(comparison)
        return comparison.finish()
    vae = vae_from_state(case.state("vae", "vae.safetensors"))
    transformer = transformer_from_state(case.state("transformer", "transformer.safetensors"))
    pipeline = VAREditPipeline(transformer, vae)
    features = _encode_source(comparison, pipeline)

    def make_session(
        model: InfinityTransformer, condition: TextCondition, schedule: ScaleSchedule, patchify: bool
    ) -> VAREditSession:
        source = features.expand(len(condition.positive), -1, -1, -1)
        session = pipeline.start(condition, schedule, source, partial(_check_source, comparison))
        comparison.check("source.prefix", session.source_features[:1])
        return session

    run_generation(comparison, transformer, vae, make_session)
    run_sampler_units(comparison)
    return comparison.finish()


def _encode_source(comparison: Comparison, pipeline: VAREditPipeline) -> Tensor:
    """Encodes the stored picture; compares its features, and its bits where a case has them."""
    source = comparison.case.info["source"]
    stored = comparison.take(source["tensor"])
    repeat = int(source.get("repeat", 1))
    picture = Image.fromarray(stored.numpy().repeat(repeat, axis=0).repeat(repeat, axis=1))
    features = pipeline.encode_pictures([picture], picture.size)
    comparison.check("source.features", features)
    if any(name.startswith("source.bits") for name in comparison.case.tensors):
        grids = pipeline.vae.latent_grids(comparison.case.info["call"]["scale_schedule"])
        for index, bits in enumerate(quantize_multiscale(features, grids).bits):
            comparison.check(f"source.bits{index:02}", bits.unsqueeze(1).to(torch.uint8))
    return features


def _check_source(comparison: Comparison, name: str, hidden: Tensor) -> None:
    """Compares hidden states of the source pass, by the names of the official code's blocks."""
    stored = "src.block0_input" if name == "input" else f"src.block{name.split()[1]}_output"
    comparison.check(stored, hidden)


def _run_pictures(comparison: Comparison) -> None:
    """Fits pictures to the model's square, and cuts results back to their sizes.

    Values are compared as bytes, of which a few may differ by one: another Pillow may round differently.
    """
    settings = comparison.case.info["preprocess"]
    for index, _ in enumerate(settings["pictures"]):
        picture = comparison.take(f"input.p{index}.picture_uint8")
        result = comparison.take(f"input.p{index}.result_uint8")
        side = int(settings["size"])
        square = fit_to_canvas(Image.fromarray(picture.numpy()), (side, side))
        cropped = crop_result(Image.fromarray(result.numpy()), (picture.shape[1], picture.shape[0]))
        for name, computed in (
            (f"p{index}.transformed", _to_bytes(square)),
            (f"p{index}.cropped_uint8", torch.from_numpy(np.array(cropped, dtype=np.uint8))),
        ):
            stored = comparison.case.tensors[name]
            exact = _to_bytes(stored) if stored.is_floating_point() else stored
            comparison.report.tensors[name] = compare(computed, exact, picture=True)


def _to_bytes(pixels: Tensor) -> Tensor:
    """Values in -1..1 as bytes."""
    return ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
