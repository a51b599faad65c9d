"""What training wraps around a state dict: found, stripped, and nothing else."""

from __future__ import annotations

import pytest
import torch

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.weights import Checkpoint
from stepvar.checkpoints.wrappers import find_state, strip_wrappers

STATE = {"head.weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (STATE, ()),
        ({"model": STATE, "optimizer": {"lr": 1}}, ("model",)),
        ({"model": {"a": torch.zeros(1)}, "ema": STATE}, ("ema",)),
        ({"model": {"state_dict": STATE}}, ("model", "state_dict")),
        ({"ema": None, "state_dict": STATE}, ("state_dict",)),
        ({"ema": {"decay": 0.999}, "model": STATE}, ("model",)),
    ],
)
def test_the_state_dict_is_found(content, taken):
    found, keys = find_state(content, ())
    assert keys == taken and found is STATE


def test_the_trainers_own_place_comes_first():
    content = {"model": {"a": torch.zeros(1)}, "trainer": {"var": STATE}}
    assert find_state(content, [("trainer", "none"), ("trainer", "var")]) == (STATE, ("trainer", "var"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["block_chunks.0.module.0.a", "head"], ["block_chunks.0.module.0.a", "head"]),
        (["module._orig_mod.model.a", "module._orig_mod.model.b"], ["a", "b"]),
        (["blocks.0._orig_mod.a", "blocks.1._checkpoint_wrapped_module.a"], ["blocks.0.a", "blocks.1.a"]),
        (["_orig_mod.a", "a"], ["_orig_mod.a", "a"]),
        (["vae.encoder.a", "vae.decoder.a"], ["vae.encoder.a", "vae.decoder.a"]),
    ],
)
def test_prefixes_are_stripped_where_every_name_stays_its_own(names, expected):
    assert list(strip_wrappers(names)[0].values()) == expected


def test_flat_parameters_have_lost_their_shapes(tmp_path):
    torch.save({"_fsdp_wrapped_module._flat_param": torch.zeros(9)}, tmp_path / "flat.pth")
    with pytest.raises(CheckpointError, match="FULL_STATE_DICT"):
        Checkpoint.open(tmp_path / "flat.pth")
