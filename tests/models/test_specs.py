"""The list of models: every spec leads somewhere, and every model is recognised by its weights."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import stepvar
from stepvar.checkpoints.components import load_reference
from stepvar.checkpoints.errors import CheckpointError
from stepvar.loading.conversion import model_of
from stepvar.models import MODELS
from stepvar.models.pipeline import NextScalePipeline


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.key)
def test_every_reference_of_a_spec_exists(spec):
    assert callable(load_reference(spec.convert))
    assert callable(load_reference(spec.conformance))
    assert issubclass(spec.pipeline_class, NextScalePipeline)
    for component in spec.components.values():
        # The first class is what this version writes; the others may be of other versions of transformers.
        assert isinstance(load_reference(component.classes[0]), type)
        if component.loader is not None:
            assert callable(load_reference(component.loader))


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.key)
def test_a_spec_lists_the_components_of_its_pipeline(spec):
    required, optional = spec.pipeline_class._get_signature_keys(spec.pipeline_class)
    components = set(spec.components)
    assert components <= {*required, *optional}
    assert {name for name in components if spec.components[name].optional} == set(
        spec.pipeline_class._optional_components
    )


def test_every_pipeline_is_public_and_has_presets():
    assert {name for name in stepvar.__all__ if name.endswith("Pipeline")} == {
        spec.pipeline_name for spec in MODELS
    }
    for spec in MODELS:
        assert {"paper", "prune", "skip"} <= spec.presets.keys()


def test_every_text_encoder_has_a_strict_loader():
    for spec in MODELS:
        for name, component in spec.components.items():
            assert (component.loader is not None) == name.startswith("text_encoder")


def test_the_list_of_models_needs_no_torch():
    code = "import sys, stepvar.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_models_are_recognised_by_official_and_own_names(tmp_path):
    from tiny_models import make_transformer
    from tiny_switti import make_switti
    from tiny_var import make_var

    for make, key in ((make_transformer, "infinity"), (make_var, "var"), (make_switti, "switti")):
        model, file = make(), tmp_path / f"{key}.safetensors"
        save_file(model.state_dict(), file)
        assert model_of(file).key == key


def test_what_is_no_transformer_is_called_by_its_name(tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"nothing that stepvar knows .*some.weight.*a VAR transformer"):
        model_of(tmp_path / "x.safetensors")
