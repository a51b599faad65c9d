"""The quantiser that VAR, Switti and HART share, against what VAR's official code computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stepvar.models.common.vector_quantizer import (
    VectorQuantizer,
    map_tokens,
    nearest_codes,
    official_quantizer_keys,
    refinement_index,
)

CASE = Path(__file__).parents[1] / "golden" / "var" / "vqvae"

PUBLISHED_INDEX = {
    3: "023",
    4: "0123",
    5: "01223",
    6: "001233",
    7: "0012233",
    8: "00112233",
    9: "001122233",
    10: "0011122333",
    11: "00011222333",
    12: "000111222333",
    13: "0001112222333",
    14: "00011112222333",
}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(CASE / "tensors.safetensors")


@pytest.fixture(scope="module")
def grids() -> list[tuple[int, int]]:
    sides = json.loads((CASE / "case.json").read_text())["constructor"]["VQVAE"]["v_patch_nums"]
    return [(side, side) for side in sides]


@pytest.fixture(scope="module")
def quantizer() -> VectorQuantizer:
    names = official_quantizer_keys(4)
    state = load_file(CASE / "weights.safetensors")
    prefix = "quantizer."
    model = VectorQuantizer(128, 16)
    model.load_state_dict(
        {ours.removeprefix(prefix): state[theirs].float() for ours, theirs in names.items()}
    )
    return model.requires_grad_(False)


@pytest.mark.parametrize("scales", PUBLISHED_INDEX)
def test_scales_share_refinements_as_published(scales):
    indices = [refinement_index(scale, scales, 4) for scale in range(scales)]
    assert "".join(map(str, indices)) == PUBLISHED_INDEX[scales]


def test_one_scale_alone_uses_the_first_refinement():
    assert refinement_index(0, 1, 4) == 0


def test_quantising_equals_the_official_code(golden, grids, quantizer):
    result = quantizer.quantize(golden["enc.quant_conv_out"], grids)
    summed = quantizer.partial_latents(result.index, grids)
    for scale in range(len(grids)):
        assert torch.equal(result.index[scale], golden[f"tokens.{scale:02}"])
        for latent in (result.partial_latents[scale], summed[scale]):
            torch.testing.assert_close(latent, golden[f"f_hat.{scale:02}"], rtol=0, atol=1e-5)
    inputs = [map_tokens(latent, grid) for latent, grid in zip(summed[:-1], grids[1:], strict=True)]
    torch.testing.assert_close(torch.cat(inputs, 1), golden["teacher_input"], rtol=0, atol=1e-5)


def test_what_was_left_over_and_what_was_summed_make_the_features(golden, grids, quantizer):
    features = golden["enc.quant_conv_out"]
    result = quantizer.quantize(features, grids)
    for before, latent in zip(result.remainders[1:], result.partial_latents, strict=False):
        torch.testing.assert_close(before + latent, features, rtol=0, atol=1e-5)


def test_scales_need_not_be_square(golden, quantizer):
    features = golden["enc.quant_conv_out"][..., :4]
    grids = [(1, 1), (2, 1), (3, 2), (6, 4)]
    result = quantizer.quantize(features, grids)
    assert [index.shape for index in result.index] == [(2, rows * columns) for rows, columns in grids]
    assert result.latent.shape == features.shape


def test_a_schedule_that_does_not_end_at_the_latent_grid_is_refused(golden, quantizer):
    with pytest.raises(ValueError, match=r"must end at the latent grid \(6, 6\)"):
        quantizer.quantize(golden["enc.quant_conv_out"], [(1, 1), (5, 5)])


def test_the_nearest_code_is_found_whatever_the_shape():
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(20, 3, generator=generator)
    features = torch.randn(2, 5, 3, generator=generator)
    expected = torch.cdist(features, codebook.expand(2, -1, -1)).argmin(-1)
    assert torch.equal(nearest_codes(features, codebook), expected)
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(20))


def test_a_scale_may_have_a_refinement_of_its_own():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4, refinements=3, refine_by_scale=True)
    codes = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        refined = [quantizer.refine(codes, scale, 3) for scale in range(3)]
        for scale, layer in enumerate(quantizer.refinements):
            torch.testing.assert_close(refined[scale], 0.5 * codes + 0.5 * layer(codes))


def test_without_refinement_codes_stay_as_they_are():
    quantizer = VectorQuantizer(8, 4, refinement_share=0.0)
    codes = torch.randn(1, 4, 5, 5)
    assert quantizer.refine(codes, 1, 3) is codes


@pytest.mark.parametrize(
    ("arguments", "path"),
    [((4,), "qresi_ls.0."), ((1,), "qresi."), ((3, True), "0.")],
)
def test_the_three_official_spellings(arguments, path):
    names = official_quantizer_keys(*arguments)
    assert names["quantizer.refinements.0.bias"] == f"quantize.quant_resi.{path}bias"
    assert len(names) == 1 + 2 * arguments[0]


@pytest.mark.parametrize(("refinements", "scales"), [(7, 5), (3, 6), (4, 9), (5, 5), (4, 4)])
def test_refinements_of_another_schedule_are_taken_by_place(refinements, scales):
    quantizer = VectorQuantizer(9, 4, refinements, refine_by_scale=True, refinement_share=1.0)
    codes = torch.randn(1, 4, 3, 3)
    edge = 1 / 3 / refinements if refinements == 4 else 1 / 2 / refinements
    ticks = np.linspace(edge, 1 - edge, refinements)
    for scale in range(scales):
        layer = quantizer.refinements[int(np.abs(ticks - scale / (scales - 1)).argmin())]
        torch.testing.assert_close(quantizer.refine(codes, scale, scales), layer(codes))


def test_codes_may_be_compared_by_direction_alone():
    generator = torch.Generator().manual_seed(0)
    codebook, features = torch.randn(20, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)
    codebook = codebook * torch.linspace(0.1, 9.0, 20)[:, None]
    cosine = torch.nn.functional.cosine_similarity(features[:, :, None], codebook[None, None], dim=-1)
    assert torch.equal(nearest_codes(features, codebook, cosine=True), cosine.argmax(-1))
    assert not torch.equal(nearest_codes(features, codebook), cosine.argmax(-1))
    quantizer = VectorQuantizer(20, 4)
    quantizer.codebook.weight.data.copy_(codebook)
    code = quantizer.quantize(features.view(2, 4, 2, 3), [(1, 1), (2, 3)], cosine=True)
    assert torch.equal(code.index[1], nearest_codes(code.remainders[1].flatten(2).mT, codebook, cosine=True))
