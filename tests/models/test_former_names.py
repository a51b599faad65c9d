"""Folders that earlier versions saved, with the former class names of visual tokenizers, keep loading."""

from __future__ import annotations

import json

import pytest
import torch

from stepvar.models import MODELS
from stepvar.models.spec import load_reference
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline
from tiny_varedit import make_varedit_pipeline

MAKERS = {
    "infinity": make_infinity_pipeline,
    "hart": make_hart_pipeline,
    "infinitystar": make_star_pipeline,
    "switti": make_switti_pipeline,
    "var": make_var_pipeline,
    "varedit": make_varedit_pipeline,
}


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.key)
def test_a_tokenizer_of_a_former_name_loads(spec, tmp_path):
    pipeline = MAKERS[spec.key]()
    component = spec.components["vae"]
    [former] = component.former_names
    pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**config, "_class_name": former}))
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vae"] = [f"stepvar.models.{spec.key}.tokenizer", former]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = load_reference(component.classes[0]).from_pretrained(tmp_path / "vae")
    for name, value in pipeline.vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    again = type(pipeline).from_pretrained(tmp_path)
    assert type(again.vae) is type(pipeline.vae)
