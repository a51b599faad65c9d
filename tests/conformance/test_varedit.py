"""Golden cases of VAREdit pass whole, and a changed number or a repaired detail makes them fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.conformance import run_case
from stepvar.models.varedit.pictures import crop_result, fit_to_canvas
from stepvar.models.varedit.source_cache import ScaleAlignedCache

pytestmark = pytest.mark.golden

GOLDEN = Path(__file__).parents[1] / "golden" / "varedit"
EDIT = "edit_006M_1x1"
LARGE = "edit_1M_3x4_patchify"


@pytest.mark.parametrize("name", [EDIT, pytest.param(LARGE, marks=pytest.mark.slow), "picture_transform"])
def test_cases_pass_with_every_tensor_compared(name):
    report = run_case(GOLDEN / name)
    stored = load_file(GOLDEN / name / "tensors.safetensors")
    assert report.passed
    assert {*report.tensors, *report.inputs} == stored.keys()


@pytest.mark.parametrize("tensor", ["source.features", "src.block5_output", "s06.logits", "source.bits03"])
def test_one_changed_value_is_reported(tmp_path, tensor):
    for name in (EDIT, "tiny_d16"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    file = tmp_path / EDIT / "tensors.safetensors"
    stored = load_file(file)
    first = stored[tensor].view(-1)[:1]
    first.copy_(1 - first if stored[tensor].dtype == torch.uint8 else first + 0.1)
    save_file(stored, file)
    report = run_case(tmp_path / EDIT)
    assert not report.passed
    assert not report.tensors[tensor].passed


def test_the_first_layer_sees_averages_and_earlier_targets_but_never_earlier_averages():
    keys, values = torch.zeros(2, 3, 4 + 5, 8), torch.zeros(2, 3, 4 + 5, 8)
    cache = ScaleAlignedCache(keys, values, (2, 2))
    source = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    cache.attend(source, source, source, 1.0)
    ones = torch.ones(2, 3, 1, 8)
    cache.begin_scale((1, 1))
    first = cache.attend(ones, ones, ones, 1.0)
    keys_seen = torch.cat([source.mean(dim=2, keepdim=True), ones], dim=2)
    expected = torch.nn.functional.scaled_dot_product_attention(ones, keys_seen, keys_seen, scale=1.0)
    torch.testing.assert_close(first, expected)
    target = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    cache.begin_scale((2, 2))
    second = cache.attend(target, target, target, 1.0)
    keys_seen = torch.cat([source, ones, target], dim=2)
    expected = torch.nn.functional.scaled_dot_product_attention(target, keys_seen, keys_seen, scale=1.0)
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize("size", [(90, 61), (37, 53), (64, 64)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_picture_comes_back_at_its_own_size(size, fit):
    from PIL import Image

    picture = Image.new("RGB", size, (200, 30, 90))
    square = fit_to_canvas(picture, (64, 64), fit)
    assert square.shape == (3, 64, 64)
    back = crop_result(picture.resize((64, 64)), size, fit)
    assert back.size == (size if fit == "pad" else (min(size),) * 2)
