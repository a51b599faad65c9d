"""The hybrid tokenizer: codes and a residual give the features back. A golden case proves its arithmetic."""

from __future__ import annotations

import torch

from tiny_hart import GRIDS, make_vae


def test_codes_and_residual_give_the_features_back_exactly():
    vae = make_vae()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = vae.encode_features(image)
    code = vae.encode_hybrid(image, GRIDS)
    torch.testing.assert_close(code.latent, features, rtol=0, atol=1e-5)
    bare = code.target - code.residual
    torch.testing.assert_close(bare, vae.quantizer.lookup(code.index[-1]), rtol=0, atol=1e-6)
    assert not torch.allclose(code.discrete_latent, features, atol=1e-2)
    assert [index.shape for index in code.index] == [(2, rows * columns) for rows, columns in GRIDS]


def test_the_last_scale_is_neither_enlarged_nor_refined():
    vae = make_vae()
    features = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    code = vae.quantize_hybrid(features, GRIDS)
    left = features - code.partial_latents[-1]
    torch.testing.assert_close(code.target, left.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    assert not torch.allclose(vae.quantizer.quantize(features, GRIDS).latent, code.discrete_latent, atol=1e-3)
