"""The registry of models: every entry leads somewhere, and every model is found by its weights."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from safetensors.torch import save_file

import stepvar
from stepvar.checkpoints.weights import CheckpointError
from stepvar.models.pipeline import NextScalePipeline
from stepvar.models.registry import MODELS, TEXT_ENCODERS, model_of
from stepvar.pruning.presets import PRESETS


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.package)
def test_every_entry_converts_and_conforms(entry):
    assert callable(import_module(f"{entry.package}.checkpoints").convert)
    assert callable(import_module(entry.conformance).run)


def test_every_pipeline_is_public_and_has_presets():
    pipelines = {name for name in stepvar.__all__ if name.endswith("Pipeline")}
    assert pipelines == PRESETS.keys()
    for name in pipelines:
        assert issubclass(getattr(stepvar, name), NextScalePipeline)
        assert {"paper", "prune", "skip"} <= PRESETS[name].keys()


def test_every_text_encoder_has_a_strict_loader():
    for module in TEXT_ENCODERS.values():
        assert callable(import_module(module).load_text_encoder)


def test_models_are_told_by_official_and_own_names(tmp_path):
    from tiny_models import make_transformer
    from tiny_switti import make_switti
    from tiny_var import make_var

    for make, package in ((make_transformer, "infinity"), (make_var, "var"), (make_switti, "switti")):
        model, file = make(), tmp_path / f"{package}.safetensors"
        save_file(model.state_dict(), file)
        assert model_of(file).package == f"stepvar.models.{package}"


def test_what_is_no_transformer_is_called_by_its_name(tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"nothing that stepvar knows .*some.weight.*a VAR transformer"):
        model_of(tmp_path / "x.safetensors")
