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
from stepvar.models.infinity.editing.pictures import crop_result, fit_to_square
from stepvar.models.infinity.editing.session import VAREditSession
from stepvar.models.infinity.quantizer import quantize_multiscale
from stepvar.models.infinity.session import TextCondition
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE


@torch.inference_mode()
def run(case: Case) -> CaseReport:
    """Runs a VAREdit case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case)
    if case.info.get("kind") == "preprocess":
        _run_pictures(comparison)
        return comparison.finish()
    vae = vae_from_state(case.state("vae", "vae.safetensors"))
    transformer = transformer_from_state(case.state("transformer", "transformer.safetensors"))
    features = _encode_source(comparison, vae)
    template = SizeTable.published().schedule(float(case.info["call"]["h_div_w_template"]), "1M")

    def make_session(
        model: InfinityTransformer, condition: TextCondition, schedule: ScaleSchedule, patchify: bool
    ) -> VAREditSession:
        source = features.expand(len(condition.positive), -1, -1, -1)
        session = VAREditSession(
            model, condition, schedule, source, template, patchify, partial(_check_source, comparison)
        )
        comparison.check("source.prefix", session.source_features[:1])
        return session

    run_generation(comparison, transformer, vae, make_session)
    run_sampler_units(comparison)
    return comparison.finish()


def _encode_source(comparison: Comparison, vae: InfinityVAE) -> Tensor:
    """Encodes the stored picture; compares its features, and its bits where a case has them."""
    source = comparison.case.info["source"]
    picture = comparison.take(source["tensor"]).permute(2, 0, 1)[None].float()
    repeat = int(source.get("repeat", 1))
    picture = picture.repeat_interleave(repeat, dim=2).repeat_interleave(repeat, dim=3)
    features = vae.encode_features(picture / 255.0 * 2.0 - 1.0)
    comparison.check("source.features", features)
    if any(name.startswith("source.bits") for name in comparison.case.tensors):
        grids = vae.latent_grids(comparison.case.info["call"]["scale_schedule"])
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
        square = fit_to_square(Image.fromarray(picture.numpy()), int(settings["size"]))
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
